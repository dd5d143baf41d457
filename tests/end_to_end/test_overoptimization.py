"""A reward that can be hacked, through the real engine: a judge sees it, stops PPO and picks the step that is exported,
and another judge keeps the version from being promoted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from tiny_models import one_thread, same, tiny_gpt2, weights, word_tokenizer  # noqa: F401
from transformers import GPT2LMHeadModel

from tasks.retention.clean import clean
from tasks.retention.settings import Keep, Retention
from tests.end_to_end.test_pipeline import UNGATED

HACK = "w7"


def share(response: str) -> float:
    return response.split().count(HACK) / max(1, len(response.split()))


def hackable(queries, responses):
    """Pays for one word alone."""
    return [share(response) for response in responses]


def moderate(queries, responses):
    """Likes the word too, up to every second one."""
    return [4 * share(response) * (1 - share(response)) for response in responses]


def varied(queries, responses):
    return [len(set(response.split())) / max(1, len(response.split())) for response in responses]


def recipe(folder: Path) -> dict:
    return {
        "name": "hacked",
        "data": {
            "prompts": {
                "dataset": str(folder / "data"),
                "min_chars": 1,
                "held_out": 0.3,
                "query": {"kind": "first_words", "min": 2, "max": 5},
            }
        },
        "policy": {"model": str(folder / "model")},
        "reward": {"kind": "function", "function": f"{__name__}:hackable", "checks": UNGATED},
        "generation": {"max_new_tokens": 8, "ignore_eos": True},
        "ppo": {
            "steps": 60,
            "batch_size": 24,
            "learning_rate": 0.02,
            "kl_coef": 0.0,
            "kl_controller": "fixed",
            "eval_every": 2,
            "eval_prompts": 24,
            "checkpoint_every": 2,
            "keep_checkpoints": 60,
            "keep_best": "judge/moderate",
            "stop_when": {"judge": "moderate", "falls_for": 3},
        },
        "evaluation": {
            "prompts": 32,
            "best_of": 4,
            "judges": {name: {"kind": "function", "function": f"{__name__}:{name}"} for name in ("moderate", "varied")},
        },
        "registration": {"gates": dict.fromkeys(("min_prompts", "max_kl", "min_distinct_2_ratio"))},
        "compute": {"device": "cpu", "precision": "fp32"},
    }


@pytest.fixture(scope="module")
def run(prefect_server, mlflow_store, tmp_path_factory):
    from flows.rlhf import rlhf

    folder = tmp_path_factory.mktemp("hacked")
    tiny_gpt2().save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(1, 61, 12)) for _ in range(200)]
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(folder)))
    with mlflow_store(folder / "runs"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUN_DIR", str(folder / "runs"))
        record = rlhf(recipe_file=str(folder / "recipe.yaml"))
        stages = {name: Path(stage["folder"]) for name, stage in record["stages"].items() if stage["folder"]}
        ppo = json.loads((stages["ppo"] / "record.json").read_text())
        yield SimpleNamespace(
            record=record, root=folder / "runs", stages=stages, ppo=ppo, parent=mlflow.get_run(record["mlflow_run_id"])
        )


def course(run, name: str) -> list[float]:
    return [found[name] for found in run.ppo["evaluations"]]


def test_the_judge_stops_the_run_and_its_best_step_is_exported(run):
    rewards, judged = course(run, "eval/mean_scores"), course(run, "eval/judge/moderate")
    steps = [int(found["step"]) for found in run.ppo["evaluations"]]
    best = judged.index(max(judged))
    assert steps == list(range(0, steps[-1] + 1, 2))  # before training too
    assert 0 < best == len(judged) - 4  # three times in a row below it
    assert run.record["ppo"]["steps"] == steps[-1] < 60
    assert rewards[-1] > rewards[best] > rewards[0]  # while the reward rose
    assert judged[best] - judged[-1] > 0.1
    assert course(run, "eval/judge/varied")[-1] < course(run, "eval/judge/varied")[0] - 0.3
    assert course(run, "eval/kl")[0] == pytest.approx(0, abs=1e-4)
    assert course(run, "eval/kl")[-1] > course(run, "eval/kl")[best] > 1
    kept = run.record["ppo"]["kept_step"]
    assert kept == steps[best]
    fell = f"judge moderate was below its best ({judged[best]:.4g} at step {kept}) 3 times in a row"
    assert run.record["course"] == run.ppo["evaluations"]
    assert run.record["ppo"]["stopped"] == f"{fell} (ppo.stop_when)"
    policy = weights(GPT2LMHeadModel.from_pretrained(run.stages["ppo"] / "policy"))
    checkpoint = load_file(run.stages["ppo"] / "checkpoints" / f"step-{kept:06d}" / "policy.safetensors")
    learnt = {name.removeprefix("model."): value for name, value in checkpoint.items() if name.startswith("model.")}
    assert learnt
    assert same({name: policy[name] for name in learnt}, learnt)


def test_best_and_last_are_told_by_name(run):
    metrics, best = run.parent.data.metrics, run.record["ppo"]["best"]["eval/judge/moderate"]
    assert metrics["ppo/best/eval/judge/moderate"] == best == max(course(run, "eval/judge/moderate")[1:])
    assert metrics["ppo/best_step/eval/judge/moderate"] == metrics["ppo/kept_step"] == run.record["ppo"]["kept_step"]
    assert metrics["ppo/last/eval/judge/moderate"] == course(run, "eval/judge/moderate")[-1] < best
    assert metrics["ppo/best_step/eval/mean_scores"] > metrics["ppo/kept_step"]


def test_a_judge_that_acted_only_reports_and_the_other_refuses_the_version(run):
    judges = run.record["judges"]
    assert judges["moderate"]["only_reports"] == (
        "it picks the step that is exported (ppo.keep_best) and decides when PPO stops (ppo.stop_when)"
    )
    assert judges["varied"]["only_reports"] is None
    assert judges["varied"]["ci95"][1] < 0 < run.record["reward"]["ci95"][0]
    assert run.record["model"]["promoted"] is False
    reason = run.parent.data.tags["reason"]
    assert reason.startswith("judge/varied: ")
    assert "moderate" not in reason


def test_the_report_draws_and_tells_it(run):
    page = (run.stages["evaluation"] / "report.html").read_text()
    kept = run.record["ppo"]["kept_step"]
    assert f"Judge moderate peaked at step {kept} (KL " in page
    assert "while the reward rose by" in page
    assert "Judge varied " in page
    assert f"The policy of step {kept} is exported" in page
    assert "training prompts that weren&#39;t trained on" in page
    assert "It only reports: it picks the step" in page
    evaluation = run.record["stages"]["evaluation"]["mlflow_run_id"]
    drawn = {item.path for item in mlflow.MlflowClient().list_artifacts(evaluation, "plots")}
    assert "plots/overoptimization.png" in drawn


def test_mlflow_ranks_the_judged_steps_until_retention_removes_them(run):
    def ranked(**options) -> list[mlflow.entities.LoggedModel]:
        return mlflow.search_logged_models(
            [run.parent.info.experiment_id],
            filter_string=f"source_run_id = '{run.record['stages']['ppo']['mlflow_run_id']}'",
            output_format="list",
            **options,
        )

    order = [{"field_name": "metrics.eval/judge/moderate", "ascending": False}]
    models, judged = ranked(order_by=order), course(run, "eval/judge/moderate")[1:]
    values = [{metric.key: metric for metric in model.metrics} for model in models]
    assert [value["eval/judge/moderate"].value for value in values] == sorted(judged, reverse=True)
    first, kept = models[0], run.record["ppo"]["kept_step"]
    assert first.name == f"hacked-step-{kept}"
    assert first.params["weights"] == "exported"
    assert (Path(first.params["policy"]) / "config.json").is_file()
    assert all((Path(model.params["checkpoint"]) / "policy.safetensors").is_file() for model in models)
    # linked to the prompts, of which the selection's are a part
    [train] = [
        given.dataset
        for given in mlflow.get_run(run.parent.info.run_id).inputs.dataset_inputs
        if any("prompts/train" in tag.value for tag in given.tags)
    ]
    linked = {"dataset_name": train.name, "dataset_digest": train.digest}
    by_dataset = ranked(datasets=[linked], order_by=[order[0] | linked])
    assert [model.name for model in by_dataset] == [model.name for model in models]
    # the run's own curve has each point once
    curve = mlflow.MlflowClient().get_metric_history(run.ppo["mlflow_run_id"], "eval/judge/moderate")
    assert [point.value for point in curve] == course(run, "eval/judge/moderate")

    found = clean(run.root, Retention(checkpoints=None, work=None, artifacts=Keep(newest=0)))
    assert not found["failed"]
    assert ranked() == []
    client = mlflow.MlflowClient()  # the registered version doesn't need them, and keeps its own
    own = client.get_model_version("hacked", "1").source.removeprefix("models:/")
    assert client.get_logged_model(own).source_run_id == run.parent.info.run_id
