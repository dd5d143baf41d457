"""The playground's requests, answered by tiny registered models."""

import json
import re
import shutil
import socket
import threading
from contextlib import contextmanager

import httpx
import mlflow
import pytest
import uvicorn
from asked_playground import CHAT, a_browser, answers, asked, database_of_votes, events, sampled, the_application  # noqa: F401
from operated import settled
from registered import brevity, letters, load, policy_folders  # noqa: F401
from registered_chat import LIMIT, SYSTEM
from registered_playground import HELD_OUT, a_registry  # noqa: F401
from tiny_models import one_thread  # noqa: F401

from rlhf_lib.errors import ModelError
from tasks.pages.offered import offered
from tasks.pages.playground_server import application

# ---------------------------------------------------------------- what is offered


def test_champions_and_references_are_chosen_unless_others_are_named(registry):
    letters, plain = offered([])
    assert (letters.name, plain.name) == ("letters", "plain")
    shown = [(offer.id, offer.label, offer.chosen) for offer in letters.offers]
    champion = mlflow.MlflowClient().get_model_version_by_alias("letters", "champion").version
    assert shown == [
        ("letters/2", "letters 2", str(champion) == "2"),
        ("letters/1", "letters 1", str(champion) == "1"),
        ("letters/1/reference", "reference of letters", True),
    ]
    assert letters.offers[0].aliases == (["challenger", "champion"] if str(champion) == "2" else ["challenger"])
    assert [offer.id for offer in plain.offers if offer.chosen] == ["plain/1", "plain/1/reference"]
    [only] = offered(["letters/1", "letters/2"])
    assert all(offer.chosen for offer in only.offers)
    [challenged] = offered(["letters@challenger"])
    assert [offer.id for offer in challenged.offers if offer.chosen] == ["letters/2", "letters/1/reference"]
    with pytest.raises(ModelError, match="there is no registered model named leters: did you mean letters"):
        offered(["leters"])


def test_the_page_lists_them(client):
    page = client.get("/", follow_redirects=True).text
    assert '<input type="checkbox" name="model" value="letters/1" data-label="letters 1"' in page
    assert 'value="plain/1/reference"' in page


def test_a_held_out_prompt_is_one_of_the_evaluations(client):
    drawn = {
        client.get("/playground/prompt", params={"model": "letters/1/reference"}).json()["prompt"] for _ in range(40)
    }
    assert drawn == {"hello", HELD_OUT[1]}  # a single turn as it is typed; a dialogue as it is, which can be asked too


# ---------------------------------------------------------------- answers


def test_the_stream_is_what_is_sampled_for_that_seed(registry, client):
    told = answers(events(client, CHAT, sampling={"seed": 5}), 3)
    for id, (text, last) in zip(CHAT, told, strict=True):
        whole = sampled(registry[id], asked(), seed=5)
        assert text == whole.texts[0]
        assert (last["tokens"], last["ended"]) == (len(whole.response_ids[0]), whole.ended[0])
        [right], [brief] = letters([], [text]), brevity([], [text])
        assert last["scores"] == {"reward": pytest.approx(right), "judge brief": pytest.approx(brief)}
    assert len({text for text, _ in told}) == 3


def test_answers_come_token_by_token_in_turn(client):
    places = [event["at"] for event in events(client, CHAT) if "add" in event]
    first = [places.index(at) for at in range(3)]
    last = [len(places) - 1 - places[::-1].index(at) for at in range(3)]
    assert max(first) < min(last)


def test_a_conversation_is_each_models_own(registry, client):
    first = answers(events(client, CHAT), 3)
    said = {id: last["said"] for id, (_, last) in zip(CHAT, first, strict=True)}
    second = answers(events(client, CHAT, "and now?", said=said, turn=1), 3)
    for id, (before, _), (text, last) in zip(CHAT, first, second, strict=True):
        messages = [*asked(), {"role": "assistant", "content": before.strip()}, {"role": "user", "content": "and now?"}]
        assert text == sampled(registry[id], messages, turn=1).texts[0]
        assert last["said"] == [*messages, {"role": "assistant", "content": text.strip()}]


def test_a_dialogue_is_asked_as_one(registry, client):
    [(text, _)] = answers(events(client, CHAT[:1], HELD_OUT[1]), 1)
    turns = [("user", "hi!"), ("assistant", "Hi."), ("user", "and now?")]
    messages = [{"role": "system", "content": SYSTEM}, *({"role": role, "content": said} for role, said in turns)]
    assert text == sampled(registry["letters/2"], messages).texts[0]


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"temperature": 0}, {"greedy": True}),
        ({"top_k": 1}, {"greedy": True}),
        ({"temperature": 0.5, "top_p": 0.8}, {"temperature": 0.5, "top_p": 0.8}),
        ({"max_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_tokens": 1000}, {"max_new_tokens": LIMIT}),  # no longer than the recipe has them
    ],
)
def test_settings(registry, client, settings, same):
    [(text, last)] = answers(events(client, CHAT[:1], sampling=settings), 1)
    whole = sampled(registry["letters/2"], asked(), **same)
    assert (text, last["tokens"]) == (whole.texts[0], len(whole.response_ids[0]))


@pytest.mark.parametrize(("system", "told"), [(None, SYSTEM), ("Be rude.", "Be rude."), ("", None)])
def test_system_messages(registry, client, system, told):
    [(text, _)] = answers(events(client, CHAT[:1], system=system), 1)
    assert text == sampled(registry["letters/2"], asked(system=told)).texts[0]


def test_models_of_several_recipes_are_scored_by_each(client):
    told = answers(events(client, ["letters/2", "plain/1"]), 2)
    names = ["reward of letters 2", "judge brief of letters 2", "reward of plain 1"]
    assert [list(last["scores"]) for _, last in told] == [names, names]
    assert told[1][1]["said"] is None  # it continues texts


def test_what_models_say_is_made_safe(client, app):
    speaker = app.state.models.load("plain/1").speaker
    ids = speaker.tokenizer("<img src=x onerror=alert(1)> **b**").input_ids
    forced = iter(ids)
    head = speaker.model.lm_head.register_forward_hook(lambda _, __, out: out.index_fill(-1, _one(next(forced)), 1e9))
    try:
        [(text, last)] = answers(events(client, ["plain/1"], sampling={"temperature": 0, "max_tokens": len(ids)}), 1)
    finally:
        head.remove()
    assert text.startswith("<img src=x")
    assert "<img" not in last["html"]


def _one(token):
    import torch

    return torch.tensor([token])


def test_a_score_that_is_none_is_shown_as_none(client, app):
    scorers = app.state.models.load("letters/2").scoring.scorers
    before = dict(scorers)
    scorers["reward"] = lambda queries, responses: [None for _ in queries]
    scorers["judge brief"] = lambda queries, responses: [float("nan") for _ in queries]
    try:
        [(_, last)] = answers(events(client, ["letters/2"]), 1)
    finally:
        scorers |= before
    assert last["scores"] == {"reward": None, "judge brief": None}


def test_a_fault_is_a_line_and_the_next_question_is_answered(client, app):
    scorers = app.state.models.load("letters/2").scoring.scorers
    before = dict(scorers)
    scorers["reward"] = lambda queries, responses: 1 / 0
    try:
        told = events(client, ["letters/2"])
    finally:
        scorers |= before
    assert "division by zero" in told[-1]["error"]
    assert len(answers(events(client, ["letters/2"]), 1)[0][1]["scores"]) == 2


# ---------------------------------------------------------------- refusals


def test_a_prompt_without_room_and_a_model_that_is_gone_are_a_line(client):
    [(_, last)] = answers(events(client, CHAT[:1], "please help me now. " * 60), 1)
    assert last["error"].endswith(" tokens: there is room for 1 to 232")
    told = events(client, ["letters/7"])
    assert "letters has no version 7" in told[-1]["error"]


def test_pickles_are_not_loaded(registry, client, monkeypatch, tmp_path):
    from tasks.registry import policies

    real = mlflow.artifacts.download_artifacts
    copy = tmp_path / "copy"

    def poisoned(**where):
        if "artifact_uri" not in where:
            return real(**where)
        shutil.copytree(real(**where), copy)
        (copy / "extra.bin").write_bytes(b"\x80\x04.")
        return str(copy)

    monkeypatch.setattr(policies.mlflow.artifacts, "download_artifacts", poisoned)
    app = client.app
    app.state.models._loaded.pop("letters/1", None)
    told = events(client, ["letters/1"])
    assert "letters/1 holds pickles (extra.bin)" in told[-1]["error"]


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ({"models": []}, "models"),
        ({"models": ["letters/1"] * 2}, "a model is named twice"),
        ({"models": [f"m/{n}" for n in range(7)]}, "models"),
        ({"models": ["letters/1"], "blind": True}, "a blind comparison needs two models"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 20_001}, "prompt"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature"),
        ({"sampling": {"temperature": 1e-6}}, "a temperature is 0 (greedy) or at least 0.01"),
        ({"sampling": {"seed": 2**53}}, "sampling.seed"),
        ({"sampling": {"beams": 4}}, "sampling.beams"),
        ({"said": {"letters/1": [{"role": "tool", "content": ""}]}}, "role"),
    ],
)
def test_bad_questions_are_refused(client, question, why):
    refused = client.post("/playground/answers", json={"models": ["letters/1"], "prompt": "hello"} | question)
    assert refused.status_code == 422
    assert why in refused.json()["detail"]


def test_other_sites_ask_nothing(client):
    question = {"models": ["letters/1"], "prompt": "hello"}
    vote = {"duel": "x", "choice": "tie"}
    for path, body in (("/playground/answers", question), ("/playground/votes", vote)):
        assert client.post(path, json=body, headers={"X-CSRF-Token": "wrong"}).status_code == 403
        assert client.post(path, json=body, headers={"Origin": "http://elsewhere.example"}).status_code == 403
        assert client.post(path, json=body, headers={"Host": "elsewhere.example"}).status_code == 400


# ---------------------------------------------------------------- clients that go


def test_a_client_that_goes_away_stops_its_answers(registry, database):
    """On a real server, whose model waits for the test before each token."""
    app = application(database, at_once=1)
    tokens, begun = threading.Semaphore(0), []
    speaker = app.state.models.load("letters/1").speaker

    def one_token(*_):
        begun.append(1)
        assert tokens.acquire(timeout=60)

    speaker.model.model.register_forward_pre_hook(one_token)
    with running(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        page = client.get("/playground").text
        client.headers["X-CSRF-Token"] = re.search(r'name="csrf" content="([^"]+)"', page)[1]
        question = {"models": ["letters/1"], "prompt": "hello"}
        tokens.release(3)
        with client.stream("POST", "/playground/answers", json=question) as response:
            assert json.loads(next(response.iter_lines()).removeprefix("data: "))["at"] == 0
            settled(lambda: len(begun) == 4, "the fourth token", 60, every=0.05)
            [job] = app.state.queue._active
        settled(job.gone.is_set, "the server's notice", 60, every=0.05)
        tokens.release(1000)
        settled(lambda: not app.state.queue._active, "the end of the work", 60, every=0.05)
        assert len(begun) == 4
        assert '"end": true' in client.post("/playground/answers", json=question).text
    assert len(begun) == 4 + len(sampled(registry["letters/1"], asked()).response_ids[0])


@contextmanager
def running(app):
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
