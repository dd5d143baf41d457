"""A language model as a judge, behind a real HTTP server that speaks the protocol: orders, budget, memory, faults."""

from __future__ import annotations

import socket
import sys
import threading

import pytest
from llm_server import TOO_LONG, first_wins, llm_server

from rlhf_lib.errors import JudgeFailed, RecipeError
from rlhf_lib.evaluation.llm.judge import LLMJudge, requests_at_most, where_texts_go
from rlhf_lib.evaluation.llm.prompt import AGAIN
from rlhf_lib.evaluation.llm.verdicts import Verdicts
from rlhf_lib.evaluation.opinions import check_judge
from rlhf_lib.recipe import JudgeConfig


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def section(url, **llm):
    return JudgeConfig.model_validate({"kind": "llm", "model": "m", "llm": {"base_url": url, "retries": 0} | llm})


def judge(server, tmp_path, *, run="r", **llm):
    return LLMJudge("fair", section(server.url, **llm), Verdicts(tmp_path / "v.sqlite"), run)


ROWS = (
    ["what is a red lamp ?", "name a river", "hi there"],
    ["no idea", "a river is a river", "hello"],
    ["a red lamp is a lamp", "the sea", "hello again"],
)


def test_both_orders_are_asked_and_only_what_they_agree_on_counts(tmp_path):
    with llm_server() as server:
        found = judge(server, tmp_path, max_tokens=77).compare(*ROWS)
        assert found.values == [1.0, 0.0, 0.5]
        assert found.record == {
            "judged": 3,
            "swayed_by_order": 0,
            "unreadable": 0,
            "refused": 0,
            "over_budget": 0,
            "requests": 6,
            "known_verdicts": 0,
        }
        pairs = {server.asked(body) for body in server.bodies}
        assert (ROWS[0][0], ROWS[1][0], ROWS[2][0]) in pairs
        assert (ROWS[0][0], ROWS[2][0], ROWS[1][0]) in pairs
        assert len(pairs) == 6
        assert {(body["model"], body["temperature"], body["max_tokens"]) for body in server.bodies} == {("m", 0, 77)}


def test_a_judge_that_follows_the_order_sees_ties(tmp_path):
    with llm_server(first_wins) as server:
        found = judge(server, tmp_path).compare(*ROWS)
    assert found.values == [0.5, 0.5, 0.5]
    assert found.record["swayed_by_order"] == 3


def test_equal_answers_are_a_tie_unasked(tmp_path):
    with llm_server() as server:
        found = judge(server, tmp_path).compare(["q", "q"], [" same", "x"], ["same\n", " x"])
        assert (found.values, server.bodies) == ([0.5, 0.5], [])


def test_what_is_known_costs_nothing_until_the_question_changes(tmp_path):
    with llm_server() as server:
        first = judge(server, tmp_path).compare(*ROWS)
        again = judge(server, tmp_path, run="another").compare(*ROWS)
        assert len(server.bodies) == 6
        assert (again.values, again.record["requests"], again.record["known_verdicts"]) == (first.values, 0, 6)
        swapped = judge(server, tmp_path).compare(ROWS[0], ROWS[2], ROWS[1])
        assert (swapped.values, len(server.bodies)) == ([0.0, 1.0, 0.5], 6)
        template = "{conversation} {answer_a} {answer_b} [[A]] [[B]] [[C]]"
        for changed in ({"max_tokens": 9}, {"temperature": 0.5}, {"prompt": template}):
            server.script[:] = ["[[C]]"] * 6
            before = len(server.bodies)
            judge(server, tmp_path, run=str(changed), **changed).compare(*ROWS)
            assert len(server.bodies) == before + 6


def test_an_unreadable_reply_is_asked_for_once_more_and_then_counted(tmp_path):
    with llm_server(script=["A, I think", "[[A]]", "[[B]]"]) as server:
        found = judge(server, tmp_path, concurrency=1).compare(*(column[:1] for column in ROWS))
        assert (found.values, found.record["requests"]) == ([0.0], 3)
        assert server.bodies[1]["messages"][1:] == [
            {"role": "assistant", "content": "A, I think"},
            {"role": "user", "content": AGAIN},
        ]
    with llm_server(lambda *texts: "I would rather not") as server:
        mute = judge(server, tmp_path, concurrency=1, max_tokens=9)
        found = mute.compare(*(column[:1] for column in ROWS))
        assert (found.values, found.record["unreadable"], found.record["requests"]) == ([None], 1, 2)
        assert mute.verdicts.spent("r/fair") == 3 + 2  # the other order was given back
        with pytest.raises(JudgeFailed, match=r"m gave no readable verdict on 1 of 1 prompt: take a larger model"):
            mute.check(found)


def test_replies_that_were_cut_are_told(tmp_path):
    with llm_server(lambda *texts: "Let me see...") as server:
        mute = judge(server, tmp_path)
        with pytest.raises(
            JudgeFailed, match=r"on 3 of 3 prompts \(3 were cut: raise evaluation\.judges\.fair\.llm\.max"
        ):
            mute.check(mute.compare(*ROWS))


def rows(count):
    return [f"say w{i}" for i in range(count)], ["no"] * count, [f"w{i}" for i in range(count)]


def test_a_budget_is_counted_before_it_is_spent_and_whole_prompts_fit_in(tmp_path):
    with llm_server() as server:
        poor = judge(server, tmp_path, max_requests=43, concurrency=3)
        found = poor.compare(*rows(24))
        assert len(server.bodies) == 42
        assert (found.record["judged"], found.record["over_budget"], poor.left) == (21, 3, 1)
        assert {found.values[i] for i in found.known} == {1.0}
        poor.check(found)
        rest = judge(server, tmp_path, run="next", max_requests=43).compare(*rows(24))  # cached ones are free
        assert (rest.record["judged"], rest.record["requests"], len(server.bodies)) == (24, 6, 48)
        few = judge(server, tmp_path, run="poorer", max_requests=10, max_tokens=5)
        allowed = few.compare(*rows(24))
        with pytest.raises(JudgeFailed) as raised:
            few.check(allowed)
        assert str(raised.value) == (
            "evaluation.judges.fair.llm.max_requests (10) allows 5 of 24 prompts here, and fewer than 20 tell nothing: "
            "raise it to 48 or more, or lower evaluation.prompts"
        )


def test_some_of_a_budget_is_kept(tmp_path):
    with llm_server() as server:
        found = judge(server, tmp_path, max_requests=20).compare(*rows(10), keep=14)
        assert (found.record["judged"], len(server.bodies)) == (3, 6)


def test_so_many_are_asked_at_once(tmp_path):
    with llm_server(wait=threading.Barrier(3)) as server:  # fewer at once would wait for ever
        assert judge(server, tmp_path, concurrency=3).compare(*ROWS).values == [1.0, 0.0, 0.5]


def test_a_refusal_for_now_is_tried_again(tmp_path):
    with llm_server(script=[429, 429]) as server:
        found = judge(server, tmp_path, retries=2, concurrency=1).compare(*(column[:1] for column in ROWS))
        assert (found.values, found.record["requests"], len(server.bodies)) == ([1.0], 2, 4)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (400, r"refuses the request \(HTTP 400: 'temperature' does not support 0 .*llm\.temperature is null"),
        (
            401,
            r"refuses the key \(HTTP 401: Incorrect API key provided\): name the key's variable by .*llm\.api_key_env",
        ),
        (404, r"knows no model m at http.* \(HTTP 404: .*correct evaluation\.judges\.fair\.model, or .*llm\.base_url"),
        (429, r"takes no more requests, after 0 retries \(HTTP 429: Rate limit reached\): lower .*llm\.concurrency"),
        (500, r"fails, after 0 retries \(HTTP 500: The server had an error\): see its own log"),
    ],
)
def test_what_a_server_refuses_names_the_judge_and_the_fix(tmp_path, status, says):
    with (
        llm_server(script=[status] * 9) as server,
        pytest.raises(JudgeFailed, match=rf"^evaluation\.judges\.fair: .*{says}"),
    ):
        judge(server, tmp_path).compare(*ROWS)


LONG = ["w " * 1000] * 2, ["no"] * 2, ["w"] * 2
CONTEXT = 2000  # characters: the default template's, and a short prompt's


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_question_that_is_too_long_costs_its_own_verdict_alone(tmp_path, caplog, concurrency):
    with llm_server(context=CONTEXT) as server:
        for run, requests in (("first", 42), ("again", 2)):  # where nothing but what it refuses is asked again
            caplog.clear()
            asked = judge(server, tmp_path, run=run, concurrency=concurrency)
            found = asked.compare(*(long + short for long, short in zip(LONG, rows(20), strict=True)))
            assert found.values == [None] * 2 + [1.0] * 20
            assert (found.record["refused"], found.record["unreadable"], found.record["judged"]) == (2, 0, 20)
            assert found.record["requests"] == asked.verdicts.spent(asked.purse) == requests
            assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
                f"evaluation.judges.fair: no verdict on 2 prompts, which 127.0.0.1:{server.port} refused (HTTP 400: "
                f"{TOO_LONG})"
            ]
            asked.check(found)


def test_too_many_that_are_too_long_are_no_opinion(tmp_path):
    with llm_server(context=CONTEXT) as server:
        asked = judge(server, tmp_path)
        found = asked.compare(*(short + long for long, short in zip(LONG, rows(17), strict=True)))
    with pytest.raises(JudgeFailed) as raised:
        asked.check(found)
    assert str(raised.value) == (
        f"evaluation.judges.fair: m gave no readable verdict on 2 of 19 prompts (2 were refused, HTTP 400: {TOO_LONG}: "
        "where they are too long, take a model with a longer context): take a larger model, or a simpler "
        "evaluation.judges.fair.llm.prompt"
    )


def test_a_follow_up_that_is_too_long_is_refused_too(tmp_path):
    with llm_server(lambda *texts: "x" * CONTEXT, context=CONTEXT) as server:
        found = judge(server, tmp_path).compare(*rows(1))
    assert (found.record["refused"], found.record["requests"]) == (1, 2)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_concerns_every_request_fails_at_once(tmp_path, status, concurrency):
    with llm_server(script=[status] * 99) as server:
        with pytest.raises(JudgeFailed, match=f"HTTP {status}"):
            judge(server, tmp_path, concurrency=concurrency).compare(*rows(30))
        assert len(server.bodies) <= 4 * concurrency  # of 60


def test_replies_that_came_before_a_fault_are_kept(tmp_path):
    with llm_server(script=["[[B]]", "[[A]]", 500]) as server:
        broken = judge(server, tmp_path, concurrency=1)
        with pytest.raises(JudgeFailed):
            broken.compare(*ROWS)
        before = len(server.bodies)
        assert before == 3  # the third row is not begun
        assert broken.compare(*ROWS).record["known_verdicts"] == 2
        assert len(server.bodies) == before + 4


def test_a_server_that_is_not_there_or_is_another_one(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and doesn't listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        nowhere = LLMJudge("fair", section(url), Verdicts(tmp_path / "v.sqlite"))
        with pytest.raises(
            JudgeFailed, match=rf"{url} can't be reached .*start the server, or correct evaluation\.judges"
        ):
            nowhere.compare(*ROWS)
        taken.listen()  # and doesn't answer
        slow = LLMJudge("fair", section(url, timeout=0.2), Verdicts(tmp_path / "v.sqlite"))
        with pytest.raises(
            JudgeFailed, match=r"didn't answer within 0\.2 s: raise evaluation\.judges\.fair\.llm\.timeout"
        ):
            slow.compare(*ROWS)
    with llm_server() as server:
        wrong = LLMJudge("fair", section(server.url.removesuffix("/v1")), Verdicts(tmp_path / "v.sqlite"))
        with pytest.raises(JudgeFailed, match=r"isn't what OpenAI would .*which mostly ends in /v1"):
            wrong.compare(*ROWS)


def test_a_key_goes_only_where_the_recipe_sends_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "the-key-of-openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    monkeypatch.setenv("JUDGE_TOKEN", "the-judge-s-token")
    with llm_server() as server:
        judge(server, tmp_path).compare(*ROWS)
        assert set(server.keys) == {"Bearer none"}
        assert not any("org" in value for headers in server.headers for value in headers.values())
        server.keys.clear()
        judge(server, tmp_path, api_key_env="JUDGE_TOKEN", max_tokens=8).compare(*ROWS)
        assert set(server.keys) == {"Bearer the-judge-s-token"}
        server.script[:] = [401] * 9
        with pytest.raises(JudgeFailed, match="correct the environment variable JUDGE_TOKEN"):
            judge(server, tmp_path, api_key_env="JUDGE_TOKEN", max_tokens=9).compare(*ROWS)
        assert "token" not in (tmp_path / "v.sqlite").read_bytes().decode(errors="replace")
    assert where_texts_go(section("http://h:1/v1", api_key_env="JUDGE_TOKEN")) == (
        "prompts and answers are sent to h:1, with the key in JUDGE_TOKEN"
    )


def test_it_is_looked_for_before_anything_costly(monkeypatch):
    with llm_server() as server:
        assert check_judge("fair", section(server.url)) == ""
        server.models = ["a", "b"]
        assert check_judge("fair", section(server.url)) == (
            f"evaluation.judges.fair.model m isn't among the models that 127.0.0.1:{server.port} lists (a, b); it may "
            "serve it all the same"
        )
        assert check_judge("fair", section(server.url.removesuffix("/v1"))) == ""  # no list there
        server.models = None
        assert "fails to list its models (HTTP 500: The server" in check_judge("fair", section(server.url))
        assert server.bodies == []
    with pytest.raises(JudgeFailed, match=r"^evaluation\.judges\.fair: http.* can't be reached"):
        check_judge("fair", section(server.url))
    bare = JudgeConfig.model_validate({"kind": "llm", "model": "m"})
    with pytest.raises(JudgeFailed, match=r"OPENAI_API_KEY with the key of api\.openai\.com isn't set: set it, or"):
        check_judge("fair", bare)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(RecipeError, match=r"kind llm needs the package openai: pip install 'ppo-rlhf\[llm\]'"):
        check_judge("fair", bare)


@pytest.mark.parametrize(
    ("most", "gate", "expected"),
    [
        (2000, True, {"reference": 512, "champion": 512, "pairs": 200}),
        (900, True, {"reference": 512, "champion": 388, "pairs": 0}),
        (613, False, {"reference": 512, "champion": 0, "pairs": 100}),
    ],
)
def test_requests_are_told_beforehand(most, gate, expected):
    found = JudgeConfig.model_validate({"kind": "llm", "model": "m", "gate": gate, "llm": {"max_requests": most}})
    assert requests_at_most(found, 256, 100) == expected
