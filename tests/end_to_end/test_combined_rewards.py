"""A sum with a term that the same run trains, through every stage, the duel and `rlhf compare`."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from datasets import load_from_disk

from flows import cli
from rlhf_lib.recipe import RewardConfig, load_recipe
from rlhf_lib.rewards.build import build_reward
from tests.end_to_end.test_pipeline import overrides, started


def brevity(queries, responses):
    return [-float(len(response)) for response in responses]


SUM = {
    "reward.kind": "sum",
    "reward.normalize": False,
    "reward.terms": [
        {"weight": 2.0, "reward": {"kind": "preference", "normalize": True, "train": {"max_steps": 8}}},
        {"weight": 0.125, "reward": {"kind": "function", "function": f"{__name__}:brevity"}},
    ],
    "evaluation.judges": {
        "other": {"kind": "preference", "pairs": "held_out", "share": 0.4, "train": {"max_steps": 8}},
    },
    "registration.name": "summed",
    "registration.gates.min_judge_delta": None,
    "registration.gates.max_kl": None,
}


def settings(changes) -> list[str]:
    kept = [s for s in overrides(registration__name=None) if not s.startswith("registration.name=")]
    return [*kept, *(f"{key}={json.dumps(value)}" for key, value in changes.items())]


def options(changes) -> list[str]:
    return [word for setting in settings(changes) for word in ("--set", setting)]


@pytest.fixture(scope="module")
def summed(run_dir):
    summary = run_dir / "summed.json"
    assert cli.main(["run", "embedded", "--summary", str(summary), *options(SUM)]) == 0
    record = json.loads(summary.read_text())
    found = started(record["mlflow_run_id"])
    found.record = record
    found.reward = json.loads((Path(record["stages"]["reward_model"]["folder"]) / "record.json").read_text())
    return found


def test_a_sum_with_a_term_trained_here_scores_exactly_the_weighted_sum(summed):
    model = Path(summed.reward["model"])
    scale = json.loads((model / "term_0/normalization.json").read_text())
    trained = build_reward(RewardConfig(kind="preference"), str(model / "term_0"))
    whole = build_reward(load_recipe("embedded", settings(SUM)).reward, str(model))
    data = json.loads((Path(summed.record["stages"]["data"]["folder"]) / "record.json").read_text())
    pairs = load_from_disk(data["preferences"]["test"])
    queries, answers = list(pairs["prompt"]), list(pairs["chosen"])

    def by_hand(raw, texts):
        return [2.0 * (r - scale["mean"]) / scale["std"] - 0.125 * len(t) for r, t in zip(raw, texts, strict=True)]

    assert whole(queries, answers) == pytest.approx(by_hand(trained(queries, answers), answers), rel=1e-12)

    # and so did the evaluation: an EOS was read where an answer ended by itself, and there alone
    table = mlflow.load_table("before_after.json", run_ids=[summed.stage["evaluation"].info.run_id])
    asked, given = list(table["query"]), list(table["response_after"])
    either = [by_hand(trained(asked, given, ended=[whole] * len(given)), given) for whole in (True, False)]
    told = np.array(table["score_after"])
    assert np.abs(np.array(either) - told).min(0).max() < 1e-4


def test_the_scaled_term_has_mean_0_and_std_1_on_the_references_samples(summed):
    metrics = summed.stage["reward_model"].data.metrics
    assert metrics["term_0/std"] > 0
    assert {"accuracy/held_out", "term_0/mean"} <= set(metrics)
    left = summed.stage["judges"].data.metrics["other/pairs"]
    assert metrics["pairs"] + left == 256  # the judge's pairs are none of the term's


def test_the_next_run_duels_and_rlhf_compare_finds_the_reward(summed, run_dir, capsys):
    summary = run_dir / "again.json"
    assert summed.record["model"] == {"name": "summed", "version": "1", "promoted": True}
    assert cli.main(["run", "embedded", "--summary", str(summary), *options(SUM | {"ppo.learning_rate": 1e-3})]) == 0
    record = json.loads(summary.read_text())
    run = started(record["mlflow_run_id"])
    assert run.stage["reward_model"].data.tags["reused"] == "true"
    duel = json.loads((Path(record["stages"]["registration"]["folder"]) / "duel.json").read_text())
    assert "error" not in duel
    version = mlflow.MlflowClient().get_model_version("summed", "1")
    assert version.tags["reward_model"].startswith("runs:/")
    capsys.readouterr()
    assert cli.main(["compare", "models:/summed/1", "models:/summed/2", "--set", "evaluation.prompts=8"]) == 0
    assert "summed 2" in capsys.readouterr().out


def test_rlhf_check_tells_what_is_trained_and_tries_the_rest(capsys, run_dir):
    assert cli.main(["check", "embedded", *options(SUM)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "a sum of 2 rewards, one of them trained here on the pairs" in out


ENSEMBLE = {
    "reward.kind": "ensemble",
    "reward.members": 2,
    "reward.combine": "uncertainty",
    "reward.uncertainty_weight": 0.25,
    "evaluation.judges": {
        "several": {
            "kind": "ensemble", "members": 2, "combine": "worst", "pairs": "held_out", "share": 0.4,
            "train": {"max_steps": 4},
        }
    },
    "registration.name": "several",
    "registration.gates.min_judge_delta": None,
}  # fmt: skip


def test_an_ensemble_is_trained_checked_judged_by_another_and_found_again(run_dir, capsys):
    summary = run_dir / "several.json"
    assert cli.main(["check", "embedded", *options(ENSEMBLE)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "an ensemble of 2 models, combined by uncertainty, trained here on the pairs" in told
    assert "an ensemble of 2 models, combined by worst, trained here on 40% of the pairs' prompts" in told

    assert cli.main(["run", "embedded", "--summary", str(summary), *options(ENSEMBLE)]) == 0
    record = json.loads(summary.read_text())
    run = started(record["mlflow_run_id"])
    reward = json.loads((Path(record["stages"]["reward_model"]["folder"]) / "record.json").read_text())
    model, metrics = Path(reward["model"]), run.stage["reward_model"].data.metrics
    data = json.loads((Path(record["stages"]["data"]["folder"]) / "record.json").read_text())
    pairs = load_from_disk(data["preferences"]["test"])
    queries, answers = list(pairs["prompt"]), list(pairs["chosen"])
    scaled = []
    for name in ("member_0", "member_1"):
        raw = np.array(build_reward(RewardConfig(kind="preference"), str(model / name))(queries, answers))
        scaled.append((raw - metrics[f"{name}/mean"]) / metrics[f"{name}/std"])
        assert metrics[f"{name}/pairs"] == metrics["pairs"]
    assert np.abs(scaled[0] - scaled[1]).max() > 1e-3  # seeds of their own
    by_hand = np.mean(scaled, axis=0) - 0.25 * np.var(scaled, axis=0)
    whole = build_reward(load_recipe("embedded", settings(ENSEMBLE)).reward, str(model))
    assert whole(queries, answers) == pytest.approx(by_hand.tolist(), abs=1e-4)

    checks = run.stage["reward_checks"].data.metrics
    assert {"member_0/accuracy", "member_1/accuracy", "disagreement"} < set(checks)
    assert record["judges"]["several"]["accuracy_pairs"] == 100
    capsys.readouterr()
    assert cli.main(["compare", "models:/several/1", "reference", "--set", "evaluation.prompts=8"]) == 0
    assert "judge several" in capsys.readouterr().out
