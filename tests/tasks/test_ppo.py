"""PPO as the pipeline's task: the best step exported, an interrupted run taken up, signals under Prefect."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import mlflow
import pytest
import torch
from datasets import Dataset
from prefect import flow
from prefect.exceptions import TerminationSignal
from tiny_models import one_thread, remainder_reward, same, tiny_gpt2, tiny_prompts, weights, word_tokenizer  # noqa: F401
from transformers import GPT2LMHeadModel

from rlhf_lib.errors import RLHFError, notes
from rlhf_lib.ppo.checkpoint import checkpoints
from rlhf_lib.recipe import Recipe
from tasks.ppo import run_ppo
from tasks.results import Folders, PreparedData, RewardArtifact, StartingPolicy
from tasks.tracking.judged_steps import log_judged_steps
from tasks.tracking.runs import PipelineRun

faults: dict[int, str] = {}  # by the number of the call to the reward
calls: list[int] = []


def reward(queries: list[str], responses: list[str]) -> list[float]:
    calls.append(len(calls))
    match faults.pop(calls[-1], None):
        case "killed":
            raise KeyboardInterrupt
        case "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        case "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
        case "praised":
            return [score + 10 for score in remainder_reward(queries, responses)]
    return remainder_reward(queries, responses)


def falling(queries: list[str], responses: list[str]) -> list[float]:
    """Rises until step 2, with an evaluation a step and one before, and falls from there."""
    judged.append(len(judged))
    return [float(-abs(len(judged) - 3))] * len(responses)


judged: list[int] = []


@pytest.fixture(scope="module")
def folder(prefect_server, mlflow_store, tmp_path_factory):
    root = tmp_path_factory.mktemp("ppo")
    tiny_gpt2().save_pretrained(root / "model")
    word_tokenizer().save_pretrained(root / "model")
    for split, rows in (("train", tiny_prompts()), ("test", tiny_prompts(4))):
        Dataset.from_list(rows).save_to_disk(root / split)
    with mlflow_store(root):
        yield root


@pytest.fixture
def train(folder, tmp_path):
    """Runs the task in a flow, in a run folder of the test's own: its record, its metrics by step, and its tags."""
    calls.clear()
    faults.clear()

    @flow
    def pipeline(name: str, parent_run_id: str | None = None, judge: str | None = None, **ppo):
        recipe = Recipe.model_validate(
            {
                "name": "remainders",
                "data": {"prompts": {"dataset": "none"}},
                "policy": {"model": str(folder / "model")},
                "reward": {"kind": "function", "function": f"{__name__}:reward"},
                "generation": {"max_new_tokens": 7},
                "ppo": {"steps": 4, "batch_size": 8, "learning_rate": 0.05, "checkpoint_every": 2} | ppo,
                "evaluation": {
                    "judges": {"other": {"kind": "function", "function": f"{__name__}:{judge}"}} if judge else {}
                },
                "compute": {"device": "cpu", "precision": "fp32"},
            }
        )
        prompts = Folders(train=str(folder / "train"), test=str(folder / "test"))
        others = ("prompts", "preferences", "corpus", "labelled", "label_names", "criterion", "policy_fingerprint")
        nothing = dict.fromkeys(others)
        with mlflow.start_run(parent_run_id) as parent:
            return run_ppo(
                recipe,
                PipelineRun(run_dir=str(tmp_path / name), parent_run_id=parent.info.run_id),
                PreparedData(**nothing, texts=prompts, fingerprints={}, report={}),
                StartingPolicy(model=str(folder / "model"), fingerprint="model", prompts=prompts),
                RewardArtifact(model=None, fingerprint=None, normalization=None),
            )

    def trained(name: str = "run", **ppo):
        record = pipeline(name, **ppo)
        run = mlflow.get_run(record.mlflow_run_id)
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "ppo/mean_scores")
        return record, [metric.value for metric in history], run.data.tags

    return trained


def exported(record) -> dict[str, torch.Tensor]:
    return weights(GPT2LMHeadModel.from_pretrained(record.policy))


def test_the_best_step_is_exported_where_one_is_named(train):
    def praised_at_step_2(name: str, **ppo):
        calls.clear()
        faults[1] = "praised"
        return train(name, **ppo)

    record, scores, tags = praised_at_step_2("best", keep_best="ppo/mean_scores")
    assert max(scores) == scores[1]
    assert tags["best_step"] == "2"
    assert record.steps == 4
    assert same(exported(record), exported(praised_at_step_2("until", steps=2)[0]))
    assert not same(exported(record), exported(praised_at_step_2("last")[0]))


def test_what_looks_wrong_is_told_once_while_it_learns_and_carried_on(train, caplog):
    record, _, tags = train(steps=3, learning_rate=1.0)
    (warning,) = [each for each in record.warnings if each["kind"] == "updates"]
    assert warning["steps"] > 1
    assert "Lower ppo.learning_rate (now 1)" in warning["message"]
    assert "updates" in tags["warnings"].split(", ")
    assert record.metrics["ppo/warnings"] == len(record.warnings)
    run = mlflow.get_run(record.mlflow_run_id)
    assert mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/warnings.json") == {"warnings": record.warnings}
    told = [r.getMessage() for r in caplog.records if "one step's updates moved the policy" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith(f"ppo: step {warning['first']}: ")


def test_a_judge_stops_and_picks_in_a_run_that_was_killed_too(train):
    acting = {
        "judge": "falling",
        "steps": 9,
        "eval_every": 1,
        "eval_prompts": 2,
        "keep_best": "judge/other",
        "stop_when": {"judge": "other", "falls_for": 2},
    }
    judged.clear()
    whole, scores, tags = train("whole", **acting)
    assert len(scores) == whole.steps == 4
    assert (whole.kept_step, tags["best_step"]) == (2, "2")
    assert (
        tags["stopped"]
        == whole.stopped
        == ("judge other was below its best (0 at step 2) 2 times in a row (ppo.stop_when)")
    )
    assert [found["eval/judge/other"] for found in whole.evaluations] == [-2, -1, 0, -1, -2]
    assert whole.evaluated_on == "selection"
    found = [whole.metrics[f"ppo/{which}/eval/judge/other"] for which in ("best", "best_step", "last")]
    assert found == [0, 2, -2]

    # 4 samples are scored before the 4th step, each followed by an evaluation, and there is one before the first
    calls.clear()
    judged.clear()
    faults[7] = "killed"
    with pytest.raises(KeyboardInterrupt):
        train(**acting)
    judged[3:] = []  # the evaluation after step 3 is done again, with step 3: the last checkpoint is of step 2
    record, again, tags = train(**acting)
    assert tags["resumed_at_step"] == "2"
    assert again == scores
    assert record.evaluations == whole.evaluations
    assert (record.kept_step, record.stopped) == (whole.kept_step, whole.stopped)
    assert same(exported(record), exported(whole))

    run = mlflow.get_run(record.mlflow_run_id)
    [curve] = [mlflow.MlflowClient().get_metric_history(run.info.run_id, "eval/judge/other")]
    assert [(point.step, point.value) for point in curve] == list(enumerate([-2, -1, 0, -1, -2]))
    models = logged(run)
    assert {(model.name, model.params["weights"]) for model in models} == {
        ("remainders-step-1", "not kept"),
        ("remainders-step-2", "exported"),
        ("remainders-step-3", "not kept"),
        ("remainders-step-4", "checkpoint"),
    }
    log_judged_steps(run.info.run_id, "remainders", record.evaluations, {}, None)  # as when an answer was lost
    assert {model.model_id for model in logged(run)} == {model.model_id for model in models}
    assert all(len(model.metrics) == len(record.evaluations[0]) - 1 for model in logged(run))


def logged(run) -> list[mlflow.entities.LoggedModel]:
    return mlflow.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'", output_format="list"
    )


@pytest.mark.parametrize("name", ["ppo/mean_score", "eval/mean_score"])
def test_a_statistic_that_no_step_has_cannot_name_the_best(train, name):
    with pytest.raises(
        RLHFError, match=rf"ppo\.keep_best is {name}, but no step has that statistic: set one of .*ppo/mean_scores"
    ):
        train(keep_best=name, eval_every=2, eval_prompts=2)
    assert len(calls) <= 3  # the step of the first evaluation at the latest


def test_an_interrupted_run_goes_on_with_another_micro_batch_too(train):
    whole, scores, _ = train("whole")
    calls.clear()
    faults[3] = "killed"
    with pytest.raises(KeyboardInterrupt):
        train()
    parent = mlflow.last_active_run().info.run_id  # Prefect's retry goes on in the same one
    record, again, tags = train(parent_run_id=parent, micro_batch_tokens=16000)  # a message about memory may ask for it
    assert tags["mlflow.parentRunId"] == parent
    curve = mlflow.MlflowClient().get_metric_history(parent, "ppo/mean_scores")
    assert [(point.step, point.value) for point in curve] == list(enumerate(scores, start=1))
    assert tags["resumed_at_step"] == "2"
    assert again == scores
    assert same(exported(record), exported(whole))
    assert [path.name for path in checkpoints(Path(record.folder) / "checkpoints")] == [
        "step-000004",
        "step-000002",
    ]

    train()  # finds its work done, and its run gets the curves all the same
    reused = mlflow.last_active_run().info.run_id
    assert reused != parent
    curve = mlflow.MlflowClient().get_metric_history(reused, "ppo/mean_scores")
    assert [(point.step, point.value) for point in curve] == list(enumerate(scores, start=1))


@pytest.mark.parametrize(
    ("fault", "call", "error", "kept"),
    [
        # the same command here, since no deployment runs it; Prefect calls the flow run crashed
        ("terminated", 3, TerminationSignal, "Stopped after step 3; the same command resumes at step 4"),
        ("interrupted", 2, KeyboardInterrupt, "Stopped after step 2; the same command resumes at step 3"),
        (
            "interrupted",
            0,
            KeyboardInterrupt,
            "Stopped in ppo, before its first step was done; the same command starts this stage over",
        ),
    ],
)
def test_a_signal_leaves_the_last_step_to_go_on_from(train, tmp_path, fault, call, error, kept):
    whole, scores, _ = train("whole", checkpoint_every=50)
    calls.clear()
    faults[call] = fault
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    try:
        with pytest.raises(error) as ended:
            train(checkpoint_every=50)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert notes(ended.value) == [kept]
    assert bool(noted) == (fault == "terminated")
    found = [path.name for path in (tmp_path / "run" / "checkpoints").glob("*/step-*")]
    assert found == ([f"step-{call:06}"] if call else [])
    record, again, tags = train(checkpoint_every=50)
    assert tags.get("resumed_at_step") == (str(call) if call else None)
    assert again == scores
    assert same(exported(record), exported(whole))
