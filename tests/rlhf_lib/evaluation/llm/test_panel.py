"""A language model among the judges: its record, its share in the gates, and what becomes of a run when it fails."""

from __future__ import annotations

from functools import partial

import pytest
from datasets import Dataset
from llm_server import first_wins, llm_server

from rlhf_lib.errors import JudgeFailed
from rlhf_lib.evaluation.judges import judge_models, judge_policy
from rlhf_lib.evaluation.llm.verdicts import Verdicts
from rlhf_lib.evaluation.opinions import build_judge, gain, scorers
from rlhf_lib.evaluation.promotion import judge as judge_gates
from rlhf_lib.evaluation.report import build_comparison_report, build_report
from rlhf_lib.recipe import GatesConfig, load_recipe
from tasks.stage.keys import judge_fingerprint
from tests.rlhf_lib.evaluation.test_metrics import compared
from tests.rlhf_lib.evaluation.test_promotion import figures

GAINS = 15, 3, 6  # prompts on which the policy wins, loses, and is swayed by nothing: ties


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def made():
    """The policy's answers hold the prompt (`q0`, ...) and win, or the reference's do, or neither."""
    won, lost, tied = GAINS
    count = won + lost + tied
    before = ["no"] * won + [f"q{i} was it" for i in range(won, won + lost)] + ["no"] * tied
    after = [f"q{i}" for i in range(won)] + ["no"] * lost + ["nope"] * tied
    assert len(before) == len(after) == count
    return compared(before, after)


def recipe(url, **settings):
    section = {"kind": "llm", "model": "m", "llm": {"base_url": url, "retries": 0}} | settings
    return load_recipe("embedded", [f"evaluation.judges={{fair: {section}}}"])


def pairs(right, wrong):
    """`right` pairs whose chosen answer holds the prompt, `wrong` where the rejected one does."""
    prompts = [f"p{i}" for i in range(right + wrong)]
    no = ["no"] * (right + wrong)
    chosen = prompts[:right] + no[right:]
    return Dataset.from_dict({"prompt": prompts, "chosen": chosen, "rejected": no[:right] + prompts[right:]})


def told(server, tmp_path, held_out=None, run="r", **settings):
    asked = recipe(server.url, **settings)
    verdicts = partial(Verdicts, tmp_path / "v.sqlite")
    built = build_judge("fair", asked.evaluation.judges["fair"], verdicts=verdicts, run=run)
    (found,), columns = judge_policy(asked, made(), {"fair": built}, held_out)
    return found, columns


def test_a_side_s_score_is_what_it_wins(tmp_path):
    won, lost, tied = GAINS
    count = won + lost + tied
    with llm_server() as server:
        found, columns = told(server, tmp_path, pairs(18, 2))
    record = found.record
    assert record["policy"] == pytest.approx((won + tied / 2) / count)
    assert record["reference"] == pytest.approx((lost + tied / 2) / count)
    assert record["delta"] == pytest.approx((won - lost) / count)
    assert record["win_rate"] == record["policy"]
    assert record["ci95"][0] < record["delta"] < record["ci95"][1]
    assert record["prompts"] == count
    assert -1 < record["rank_correlation"] < 1
    assert 0 < record["length_controlled_win_rate"] < 1
    assert (record["accuracy"], record["accuracy_pairs"], record["only_reports"]) == (0.9, 20, None)
    assert (record["failed"], record["asked"]["requests"], record["asked"]["judged"]) == (None, 2 * count, count)
    assert columns["judge/fair_after"] == [1.0] * won + [0.0] * lost + [0.5] * tied
    assert columns["judge/fair_before"] == [0.0] * won + [1.0] * lost + [0.5] * tied
    report = build_report("t", made(), judges=[found])
    assert "| fair | 0.250 | 0.750 | +0.500 |" in report.markdown()
    assert "It has no opinion of the baselines" in report.html({})


def test_a_judge_swayed_by_the_order_says_so(tmp_path):
    with llm_server(first_wins) as server:
        found, _ = told(server, tmp_path)
    assert found.record["delta"] == 0
    assert "(24 ties for a winner that changed with the order.)" in found.told(made().reward)


def test_a_prompt_that_the_endpoint_refuses_is_left_out_and_told(tmp_path):
    with llm_server(script=["[[B]]", "[[A]]", 400]) as server:
        found, columns = told(server, tmp_path, llm={"base_url": server.url, "concurrency": 1})
    assert (found.record["prompts"], found.record["asked"]["refused"], found.failed) == (sum(GAINS) - 1, 1, "")
    assert [i for i, share in enumerate(columns["judge/fair_after"]) if share is None] == [1]
    assert "(1 prompt refused by its endpoint.)" in found.told(made().reward)


def test_a_gain_that_the_judge_denies_is_no_promotion(tmp_path):
    with llm_server(
        lambda asked, a, b: "[[B]]" if asked in a.split() else "[[A]]" if asked in b.split() else "[[C]]"
    ) as s:
        found, _ = told(s, tmp_path)
    passed, gates, reason = judge_gates(GatesConfig(), figures(judges={"fair": found.record}), None)
    assert not passed
    assert [gate["name"] for gate in gates if not gate["passed"]] == ["judge/fair"]
    assert "the mean gained by judge fair over the reference is -0.5" in reason


def test_prompts_come_first_then_the_champion_then_the_pairs(tmp_path):
    with llm_server() as server:
        found, _ = told(server, tmp_path, pairs(30, 0), llm={"base_url": server.url, "max_requests": 140})
        assert (found.record["asked"]["judged"], found.record["accuracy_pairs"]) == (24, 22)  # 48 + 48 + 44
        poor, _ = told(
            server,
            tmp_path,
            pairs(0, 30),
            run="poor",
            llm={"base_url": server.url, "max_requests": 42, "max_tokens": 8},
        )
    assert (poor.record["asked"]["judged"], poor.record["asked"]["over_budget"], poor.accuracy) == (21, 3, None)
    assert poor.only_reports.startswith("its accuracy isn't known: it could tell none of the test pairs")
    assert "(3 prompts not asked, over its max_requests.)" in poor.told(made().reward)


def test_a_judge_that_fails_fails_alone_and_lets_nothing_pass(tmp_path):
    with llm_server(script=[500] * 99) as server:
        found, columns = told(server, tmp_path)
        silent, _ = told(server, tmp_path, gate=False)
    assert columns == {}
    assert found.record["delta"] is None
    assert found.record["failed"].startswith("evaluation.judges.fair: 127.0.0.1")
    assert found.told(made().reward).startswith("Judge fair has no opinion: evaluation.judges.fair: 127.0.0.1")
    assert "Judge fair has no opinion" in build_report("t", made(), judges=[found]).html({})
    for judged, passes in ((found, False), (silent, True)):
        passed, _, reason = judge_gates(GatesConfig(), figures(judges={"fair": judged.record}), None)
        assert passed is passes
        assert ("judge fair failed: evaluation.judges.fair" in reason) is not passes
    duel = {
        "version": "3",
        "prompts": 200,
        "delta": 1.0,
        "ci95": (0.5, 1.5),
        "judges": {"fair": {"error": "it was down"}},
    }
    passed, _, reason = judge_gates(GatesConfig(), figures(), duel)
    assert not passed
    assert reason == ("beats_champion/fair: no comparison with the champion (version 3) by judge fair: it was down")


def test_one_that_could_not_be_had_fails_alone_too():
    (found,), columns = judge_policy(recipe("http://h/v1"), made(), {"fair": JudgeFailed("no key")}, None)
    assert (found.failed, columns) == ("no key", {})


def test_models_are_compared_with_the_first(tmp_path):
    comparison = made().comparison
    with llm_server() as server:
        asked = recipe(server.url)
        verdicts = partial(Verdicts, tmp_path / "v.sqlite")
        found, columns = judge_models(asked, comparison, {}, "cpu", verdicts=verdicts, run="r")
        built = build_judge("fair", asked.evaluation.judges["fair"], verdicts=verdicts, run="duel")
        assert gain(built, "fair", comparison).record == found["fair"][0].gained.record
        assert len(server.bodies) == 48
        assert scorers({"fair": built}) == {}
        server.script[:] = [401] * 99
        asked.evaluation.judges["fair"].llm.max_tokens = 9
        failed, _ = judge_models(asked, comparison, {}, "cpu", verdicts=verdicts, run="later")
    assert found["fair"][0].gained.win_rate == 0.75
    assert list(columns) == ["judge/fair policy"]
    rows = build_comparison_report("t", comparison, judges=found).rows
    assert rows["judge fair, wins"] == [None, 0.75]
    assert "judge fair, mean score" not in rows
    assert "refuses the key" in failed["fair"][0].failed
    assert build_comparison_report("t", comparison, judges=failed).rows["judge fair, wins"] == [None, None]


def test_the_evaluation_s_key_knows_what_is_asked_and_whom():
    sections = [
        {},
        {"model": "other"},
        {"llm": {"base_url": "http://other/v1"}},
        {"llm": {"base_url": "http://h/v1", "prompt": "{conversation} {answer_a} {answer_b} [[A]] [[B]] [[C]]"}},
    ]
    keys = {judge_fingerprint(recipe("http://h/v1", **one).evaluation.judges["fair"]) for one in sections}
    assert len(keys) == 4
