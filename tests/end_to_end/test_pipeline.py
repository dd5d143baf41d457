"""A reduced embedded recipe through the real Prefect engine and a real MLflow store: once, again, and stopped."""

import json
import math
from contextlib import redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from flows import cli
from flows.cli.tables import run_table
from rlhf_lib.recipe import flatten, load_recipe
from tasks.tracking.runs import runs_link, use_experiment

# Everything small, and no gate in the way: nothing is learnt in ten steps, what counts is how it is passed on.
UNGATED = dict.fromkeys(
    (
        "min_pairs",
        "min_accuracy",
        "min_probe_accuracy",
        "max_calibration_error",
        "min_score_std",
        "max_length_correlation",
        "max_degenerate_win_rate",
    )
)
SETTINGS = {
    "data.prompts.limit": 96,
    "data.prompts.test.split": "test[:60]",
    "data.preferences.limit": 256,
    "data.preferences.test.split": "test[:100]",
    "policy.train.from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 160, "vocab_size": 400},
    "policy.train.max_steps": 10,
    "reward.kind": "preference",
    "reward.terms": None,
    "reward.normalize": True,
    "reward.train.max_steps": 8,
    "reward.checks": UNGATED | {"pairs": 60},
    "generation.max_new_tokens": 12,
    "ppo.steps": 3,
    "ppo.batch_size": 16,
    "ppo.mini_batch_size": 8,
    "ppo.checkpoint_every": 2,
    "evaluation.prompts": 32,
    "evaluation.sft_on_chosen": False,
    "evaluation.judges": {},
    "evaluation.metrics": [],
    "evaluation.best_of": 4,
    "evaluation.best_of_prompts": 20,
    "evaluation.perplexity.limit": 20,
    "registration.gates": dict.fromkeys(
        ("min_prompts", "min_reward_delta", "max_perplexity_ratio", "min_distinct_2_ratio")
    ),
}
STAGES = ["data", "base_model", "reward_model", "reward_checks", "ppo", "evaluation", "registration"]
RECORD = {
    "recipe": None,
    "mlflow_run_id": None,
    "model": {"name", "version", "promoted"},
    "reward_model": {"accuracy", "ci95", "held_out", "checks_passed"},
    "ppo": {"steps", "seconds", "kl", "warnings", "kept_step", "stopped", "best", "best_step", "last"},
    "course": None,
    "warnings": None,
    "reward": {"reference", "policy", "delta", "ci95", "win_rate", "prompts"},
    "perplexity": {"reference", "policy", "mean_per_text_reference", "mean_per_text_policy"},
    "answer_perplexity": {"reference", "policy", "mean_per_text_reference", "mean_per_text_policy"},
    "diversity": {"distinct_2_reference", "distinct_2_policy"},
    "metrics": None,
    "baselines": {f"best_of_{n}" for n in (1, 2, 4)},
    "judges": None,
    "lm_eval": None,
    "phrases": None,
    "evaluation": {"prompts", "distinct_prompts", "held_out"},
    "until": None,
    "stages": set(STAGES),
}


def brevity(queries, responses):
    return [-float(len(response)) for response in responses]


JUDGES = {
    "other": {"kind": "preference", "pairs": "held_out", "share": 0.4, "train": {"max_steps": 8}},
    "short": {"kind": "function", "function": f"{__name__}:brevity"},
}


def overrides(**changes) -> list[str]:
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def started(parent_run_id: str) -> SimpleNamespace:
    """A pipeline run as MLflow tells it: the parent, its children in order, and those by stage."""
    children = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.mlflow.parentRunId = '{parent_run_id}'",
        order_by=["attributes.start_time"],
        output_format="list",
    )
    return SimpleNamespace(
        id=parent_run_id,
        parent=mlflow.get_run(parent_run_id),
        children=children,
        stage={child.data.tags["stage"]: child for child in children},
    )


def last_parent() -> str:
    runs = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.recipe = 'embedded'", output_format="list", max_results=1
    )
    return runs[0].info.run_id


def artifacts(run) -> set[str]:
    client, found, folders = mlflow.MlflowClient(), set(), [None]
    while folders:
        for item in client.list_artifacts(run.info.run_id, folders.pop()):
            (folders.append if item.is_dir else found.add)(item.path)
    return found


@pytest.fixture(scope="module")
def first(run_dir):
    """The whole pipeline by its command, with what it printed and wrote."""
    options = [word for setting in overrides() for word in ("--set", setting)]
    named = ["--name", "first {try}", "--summary", str(run_dir / "summary.json")]
    with redirect_stdout(StringIO()) as out:
        assert cli.main(["run", "embedded", *named, *options]) == 0
    printed = out.getvalue()
    record = json.loads((run_dir / "summary.json").read_text())
    run = started(record["mlflow_run_id"])
    run.record, run.printed = record, printed
    return run


@pytest.fixture(scope="module")
def second(first):
    from flows.rlhf import rlhf

    record = rlhf(recipe="embedded", overrides=overrides())
    run = started(record["mlflow_run_id"])
    run.record = record
    return run


def test_the_record_has_the_documented_keys_and_no_others(first):
    assert set(first.record) == set(RECORD)
    for section, keys in RECORD.items():
        assert keys is None or set(first.record[section]) == keys
    assert first.record["recipe"] == "embedded"
    assert first.record["ppo"]["steps"] == 3
    learned = first.record["reward_model"]
    assert learned["held_out"] == 60
    assert learned["ci95"][0] < learned["accuracy"] < learned["ci95"][1]
    assert first.record["reward"]["prompts"] == 32
    assert first.record["evaluation"] == {"prompts": 32, "distinct_prompts": 32, "held_out": True}
    for stage, told in first.record["stages"].items():
        assert set(told) == {"about", "made", "folder", "mlflow_run_id"}
        assert told["mlflow_run_id"] == first.stage[stage].info.run_id
        assert Path(told["folder"]).name == stage
    assert Path(first.record["stages"]["reward_model"]["made"]).is_dir()
    low, high = first.record["reward"]["ci95"]
    assert low <= first.record["reward"]["delta"] <= high
    assert first.record["reward"]["delta"] == pytest.approx(
        first.record["reward"]["policy"] - first.record["reward"]["reference"], abs=1e-6
    )
    assert mlflow.artifacts.load_dict(f"{first.parent.info.artifact_uri}/summary.json") == first.record


def test_the_table_says_how_many_prompts_and_pairs_its_figures_are_of(first):
    table = first.printed
    low, high = first.record["reward"]["ci95"]
    assert f"95% [{low:+.3f}, {high:+.3f}], 32 prompts" in table
    low, high = first.record["reward_model"]["ci95"]
    assert f"held-out accuracy, 95% [{low:.3f}, {high:.3f}], 60 examples" in table
    few = first.record | {"reward": first.record["reward"] | {"ci95": None, "prompts": 1}}
    assert "wins" in run_table(few)
    assert "no 95% interval: 1 prompt is too few" in run_table(few)


def test_one_parent_with_a_child_per_stage(first):
    assert [child.data.tags["stage"] for child in first.children] == STAGES
    assert {run.info.status for run in (first.parent, *first.children)} == {"FINISHED"}
    assert {child.data.tags["reused"] for child in first.children} == {"false"}
    assert all(child.data.metrics["seconds"] > 0 for child in first.children)


def test_the_parent_carries_recipe_headlines_and_tags(first):
    recipe = load_recipe("embedded", overrides())
    assert set(first.parent.data.params) == set(flatten(recipe))
    assert first.parent.data.params["ppo.batch_size"] == "16"
    record, metrics = first.record, first.parent.data.metrics
    assert set(metrics) == {
        "reward_model/accuracy", "reward_model/ci95_low", "reward_model/ci95_high", "reward_model/held_out",
        "reward_model/checks_passed",
        "ppo/steps", "ppo/seconds", "ppo/kl", "ppo/warnings", "ppo/mean_scores", "objective/kl",
        "reward/reference", "reward/policy", "reward/delta", "reward/ci95_low", "reward/ci95_high", "reward/win_rate",
        "reward/prompts",
        "perplexity/reference", "perplexity/policy",
        "perplexity/mean_per_text_reference", "perplexity/mean_per_text_policy",
        "answer_perplexity/reference", "answer_perplexity/policy",
        "answer_perplexity/mean_per_text_reference", "answer_perplexity/mean_per_text_policy",
        "diversity/distinct_2_reference", "diversity/distinct_2_policy",
        "baseline/best_of_4/reward", "baseline/best_of_4/kl",
    }  # fmt: skip
    assert metrics["reward/ci95_high"] == record["reward"]["ci95"][1]
    assert metrics["perplexity/policy"] == record["perplexity"]["policy"]
    tags = first.parent.data.tags
    assert tags["recipe"] == "embedded"
    assert tags["model.version"] == "1"
    assert tags["held_out_prompts"] == "true"
    assert tags["prefect_flow_run_url"].endswith(tags["prefect_flow_run_id"])
    assert {name for name in tags if name.startswith("fingerprint.")} == {
        f"fingerprint.{kind}/{split}" for kind in ("prompts", "preferences") for split in ("train", "test")
    }


@pytest.mark.parametrize(
    ("stage", "metrics", "files"),
    [
        ("data", {"prompts/train/kept", "preferences/test/kept"}, {"report.json", "lengths.png"}),
        ("base_model", {"train/loss", "loss/held_out"}, {"curve.png"}),
        ("reward_model", {"train/loss", "accuracy/held_out", "normalization/std"}, {"curve.png"}),
        ("reward_checks", {"accuracy", "accuracy_low", "calibration_error"}, {"reward_checks/report.md"}),
        ("ppo", {"objective/kl", "ppo/loss/policy", "ppo/mean_scores"}, {"samples.json", "training_curves.png"}),
        ("evaluation", {"reward/delta", "kl", "perplexity/policy"}, {"before_after.json", "report.html", "report.md"}),
        ("registration", {"reward/delta", "promoted"}, {"model_card.md"}),
    ],
)
def test_each_child_has_its_metrics_and_artifacts(first, stage, metrics, files):
    child = first.stage[stage]
    assert metrics <= set(child.data.metrics)
    assert all(map(math.isfinite, child.data.metrics.values()))
    assert files <= artifacts(child)


def test_ppo_logs_every_step_and_starts_at_the_reference(first):
    client = mlflow.MlflowClient()
    history = client.get_metric_history(first.stage["ppo"].info.run_id, "objective/kl")
    assert [point.step for point in history] == [1, 2, 3]
    assert history[0].value == pytest.approx(0, abs=1e-3)
    assert history[-1].value != 0
    for curve in ("objective/kl", "ppo/mean_scores"):  # for MLflow's charts of pipeline runs
        drawn, logged = (
            [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, curve)]
            for run in (first.parent, first.stage["ppo"])
        )
        assert drawn == logged


def test_prefect_ran_it(first):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(first.parent.data.tags["prefect_flow_run_id"])
    assert flow_run.state.is_completed()


def test_the_graph_of_the_run_is_a_chain(first):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[first.parent.data.tags["prefect_flow_run_id"]]))
    with get_client(sync_client=True) as client:
        tasks = sorted(client.read_task_runs(flow_run_filter=wanted), key=lambda task: task.start_time)
    assert [task.name.rpartition("-")[0] for task in tasks] == ["preflight", *STAGES]
    for before, task in pairwise(tasks):
        arrows = [given.id for taken in task.task_inputs.values() for given in taken if given.input_type == "task_run"]
        assert arrows == [before.id]


def test_runs_are_told_apart_by_name(first, second):
    from prefect.client.orchestration import get_client

    names = ("first {try}", "embedded data.prompts.limit=96 data.prompts.test.split=test[:60] +22 more")
    for run, name in zip((first, second), names, strict=True):
        assert run.parent.info.run_name == name
        assert [child.info.run_name for child in run.children] == [f"{stage}: {name}" for stage in STAGES]
        with get_client(sync_client=True) as client:
            assert client.read_flow_run(run.parent.data.tags["prefect_flow_run_id"]).name == name


def test_mlflows_list_of_runs_shows_data_model_and_outcome(first, second):
    """Also where the data stage is reused."""
    client = mlflow.MlflowClient()
    for run in (first, second):
        sets = {
            given.tags[0].value: (given.dataset.name, given.dataset.digest)
            for given in mlflow.get_run(run.id).inputs.dataset_inputs
        }
        assert any("prompts/train" in roles and "preferences/train" in roles for roles in sets)
        digests = {value[:36] for key, value in run.parent.data.tags.items() if key.startswith("fingerprint.")}
        assert {digest for _, digest in sets.values()} == digests
        version = run.record["model"]["version"]
        [model] = client.search_logged_models(
            [run.parent.info.experiment_id], filter_string=f"source_run_id = '{run.id}'"
        )
        assert client.get_model_version("embedded", version).source == f"models:/{model.model_id}"
        assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "embedded", "version": int(version)}]
        assert run.parent.data.tags["registered"] == f"models:/embedded/{version}"
        assert run.parent.data.tags["promoted"] == str(run.record["model"]["promoted"]).lower()


def test_the_view_of_all_runs_is_stored_with_them(first, run_dir):
    experiment = mlflow.get_experiment(first.parent.info.experiment_id)
    assert runs_link().endswith(
        f"/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=rlhf"
    )
    view = json.loads(experiment.tags["mlflow.sharedViewState.rlhf"])
    state = json.loads(view["state"])
    shown = {column.partition("`")[2][:-1] for column in state["selectedColumns"] if column.startswith("metrics.")}
    charted = {chart["metricKey"] for chart in state["compareRunCharts"]}
    judged = {name for name in shown if name.startswith("judge/")}  # by judges that this run doesn't have
    assert (shown - judged) | charted <= set(first.parent.data.metrics)
    use_experiment(str(run_dir))
    assert mlflow.get_experiment(experiment.experiment_id).tags == experiment.tags  # written once
    theirs = json.dumps(view | {"updatedAt": view["createdAt"] + 1, "state": "{}"})  # as "Override saved view" does
    mlflow.MlflowClient().set_experiment_tag(experiment.experiment_id, "mlflow.sharedViewState.rlhf", theirs)
    use_experiment(str(run_dir))
    assert mlflow.get_experiment(experiment.experiment_id).tags["mlflow.sharedViewState.rlhf"] == theirs


def test_the_version_is_registered_and_champion(first):
    model = mlflow.MlflowClient().get_model_version_by_alias("embedded", "champion")
    assert first.record["model"] == {"name": "embedded", "version": "1", "promoted": True}
    assert str(model.version) == "1"
    assert model.run_id == first.id


def test_a_second_run_reuses_the_first_four_stages_and_repeats_the_rest(first, second):
    assert [child.data.tags["stage"] for child in second.children] == STAGES
    for stage in STAGES[:4]:
        tags = second.stage[stage].data.tags
        assert (tags["reused"], tags["reused_from"]) == ("true", first.stage[stage].info.run_id)
        assert f"/runs/{first.stage[stage].info.run_id}?workflowType=" in tags["reused_from_url"]
        shown = set(first.stage[stage].data.metrics) - {"seconds"}
        assert {name for name in shown if not name.startswith("train/")} <= set(second.stage[stage].data.metrics)
    assert {second.stage[stage].data.tags["reused"] for stage in STAGES[4:]} == {"false"}
    for section in ("reward_model", "reward", "perplexity", "diversity"):  # same recipe, same seed, same machine
        assert second.record[section] == first.record[section]
    # a policy that is no better than the champion doesn't take its place
    assert second.record["model"] == {"name": "embedded", "version": "2", "promoted": False}
    aliases = mlflow.MlflowClient().get_registered_model("embedded").aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {"champion": "1", "challenger": "2"}


def test_a_model_at_hand_makes_six_stages_and_a_reward_model_of_its_own(first, run_dir):
    """Without training of a base model; also without a perplexity set, whose figures are then left out."""
    from flows.rlhf import rlhf

    base = json.loads(next((run_dir / "stages").glob("base_model-*/record.json")).read_text())["model"]
    kept = overrides(evaluation__perplexity=None)
    settings = [s for s in kept if not s.startswith(("policy.", "evaluation.perplexity."))]
    given = [*settings, "policy.train=null", f"policy.model={base}"]
    # a stage that the recipe has no use for can be stopped after all the same
    stopped = rlhf(recipe="embedded", overrides=given, until="base_model")["stages"]
    assert list(stopped) == STAGES[:2]
    assert stopped["base_model"] == {
        "about": "not trained: policy.train is null", "made": base, "folder": None, "mlflow_run_id": None,
    }  # fmt: skip
    record = rlhf(recipe="embedded", overrides=given)
    run = started(record["mlflow_run_id"])
    assert [child.data.tags["stage"] for child in run.children] == [s for s in STAGES if s != "base_model"]
    assert record["perplexity"] is None
    assert record["answer_perplexity"] is None
    assert not [name for name in run.parent.data.metrics if "perplexity" in name]
    # the same weights, and so the same figures, whether trained here or given
    assert record["reward"] == first.record["reward"]


def test_a_closed_set_of_prompts_with_judges_stopped_after_ppo_and_gone_on_with(first, run_dir, capsys):
    stages = [*STAGES[:4], "judges", *STAGES[4:]]
    changed = overrides(registration__name="closed", evaluation__judges=JUDGES, evaluation__sft_on_chosen=True)
    settings = [s for s in changed if not s.startswith("data.prompts.test.")]
    settings += ["data.prompts.test=null", "data.prompts.held_out=0"]
    options = [word for setting in settings for word in ("--set", setting)]
    summary = run_dir / "closed.json"
    assert cli.main(["run", "embedded", "--until", "PPO", "--summary", str(summary), *options]) == 0
    stopped = json.loads(summary.read_text())
    assert set(stopped) == set(RECORD)
    assert stopped["until"] == "ppo"
    assert list(stopped["stages"]) == stages[:6]
    assert stopped["model"] is stopped["reward"] is stopped["evaluation"] is None
    assert stopped["ppo"]["steps"] == 3
    printed = capsys.readouterr().out
    assert all(f"{told['made'] or '-'}\n" in printed for told in stopped["stages"].values())
    assert "96 prompts, 256 preference pairs" in printed
    assert "Stopped after ppo, as asked." in printed
    assert "report.html" not in printed
    run = started(stopped["mlflow_run_id"])
    assert run.parent.info.status == "FINISHED"
    assert run.parent.data.tags["until"] == "ppo"

    assert cli.main(["run", "embedded", "--summary", str(summary), *options]) == 0
    record, printed = json.loads(summary.read_text()), capsys.readouterr().out
    again = started(record["mlflow_run_id"])
    assert {again.stage[stage].data.tags["reused"] for stage in stages[:6]} == {"true"}
    assert record["ppo"]["seconds"] == stopped["ppo"]["seconds"]
    # which the baselines go without; the trained one learned from as many answers as the reference
    assert list(record["stages"]) == [*stages[:6], "sft_on_chosen", *stages[6:]]
    assert list(record["baselines"]) == ["best_of_1", "best_of_2", "best_of_4", "sft_on_chosen"]
    chosen = record["baselines"]["sft_on_chosen"]
    assert chosen["reward"] != record["reward"]["reference"]
    assert chosen["kl"] > 0
    assert again.parent.data.metrics["baseline/sft_on_chosen/reward"] == chosen["reward"]
    assert again.stage["sft_on_chosen"].data.params["answers"] == "chosen"
    assert "SFT on chosen " in printed
    # evaluated on the prompts that it was trained on: told everywhere, and no champion
    assert record["evaluation"] == {"prompts": 32, "distinct_prompts": 32, "held_out": False}
    assert "evaluated on" in printed
    assert "training prompts" in printed
    assert again.parent.data.tags["held_out_prompts"] == "false"
    assert record["model"] == {"name": "closed", "version": "1", "promoted": False}
    version = mlflow.MlflowClient().get_model_version("closed", "1")
    assert version.tags["held_out_prompts"] == "false"
    assert version.tags["reason"].startswith("held_out: it was evaluated on its training prompts")
    page = Path(record["stages"]["evaluation"]["made"]).read_text()
    card = Path(record["stages"]["registration"]["folder"], "model_card.md").read_text()
    assert "No prompts are held out (data.prompts.held_out is 0)" in page
    assert "No prompts are held out (data.prompts.held_out is 0)" in card
    assert "on 32 training prompts" in page


def test_judges_are_in_everything_that_a_run_tells(first, run_dir):
    """Of the run before."""
    record = json.loads((run_dir / "closed.json").read_text())
    run = started(record["mlflow_run_id"])
    judges = record["judges"]
    assert list(judges) == ["other", "short"]
    assert judges["short"]["delta"] == pytest.approx(judges["short"]["policy"] - judges["short"]["reference"])
    for name, found in judges.items():
        assert {"reference", "policy", "delta", "ci95", "win_rate", "length_controlled_win_rate"} < set(found)
        assert found["accuracy_pairs"] == 100
        assert run.parent.data.metrics[f"judge/{name}/delta"] == found["delta"]
        assert run.stage["evaluation"].data.metrics[f"judge/{name}/win_rate"] == found["win_rate"]
        assert f"\njudge {name}" in run_table(record)
    # trained on other pairs than the reward model, with the same test pairs
    trained = run.stage["judges"].data.metrics
    assert trained["other/pairs"] + run.stage["reward_model"].data.metrics["pairs"] == 256
    assert trained["other/pairs"] == pytest.approx(0.4 * 256, abs=31)  # four standard deviations of the draw
    page = Path(record["stages"]["evaluation"]["made"]).read_text()
    assert f"Judge other: a reward model trained on {trained['other/pairs']:.0f} pairs that the reward model" in page
    card = Path(record["stages"]["registration"]["folder"], "model_card.md").read_text()
    version = mlflow.MlflowClient().get_model_version("closed", "1")
    for told in (card, version.tags["reason"]):
        for (
            name,
            found,
        ) in judges.items():  # nothing is learnt here: a judge that gates refuses, one that doesn't says why
            assert (f"judge/{name}" in told) == (found["only_reports"] is None)
    assert version.tags["judge.other"].startswith("runs:/")
    table = mlflow.load_table("before_after.json", run_ids=[run.stage["evaluation"].info.run_id])
    assert table["judge/short_after"].mean() == pytest.approx(judges["short"]["policy"])


def test_a_failed_gate_stops_the_run_with_its_report_and_fresh_reuses_nothing(first, capsys):
    settings = overrides(reward__checks=UNGATED | {"pairs": 60, "min_accuracy": 1.0})
    options = [word for setting in settings for word in ("--set", setting)]
    assert cli.main(["run", "embedded", "--fresh", *options]) == 1
    printed = capsys.readouterr()
    error = next(line for line in printed.err.splitlines() if line.startswith("rlhf: error: "))
    assert "accuracy: the lower bound of the share of held-out pairs with chosen above rejected is 0." in error
    assert "must be at least 1" in error
    assert "Traceback" not in printed.out + printed.err

    run = started(last_parent())
    assert run.id != first.id
    assert [child.data.tags["stage"] for child in run.children] == STAGES[:4]
    assert {child.data.tags["reused"] for child in run.children} == {"false"}
    assert [child.info.status for child in run.children] == ["FINISHED"] * 3 + ["FAILED"]
    assert run.parent.info.status == "FAILED"
    assert error.removeprefix("rlhf: error: ") == run.parent.data.tags["failure"]
    assert {"reward_checks/report.md", "reward_checks/checks.json"} <= artifacts(run.stage["reward_checks"])
