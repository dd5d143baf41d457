"""Models beside each other: the matrix and intervals by hand, tiny models, and the command on a real MLflow store."""

from pathlib import Path

import mlflow
import pytest
from datasets import Dataset
from mlflow.entities import Metric
from registered import register
from tiny_models import one_thread, remainder_reward, three_folders, tiny_gpt2, word_tokenizer  # noqa: F401

from flows import cli
from rlhf_lib.recipe import Recipe, load_recipe
from tasks.tracking import curves
from tasks.tracking.runs import pipeline_run
from tasks.tracking.views import CURVES
from tests.rlhf_lib.evaluation.test_promotion import figures


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return three_folders(tmp_path_factory.mktemp("models"))


# ---------------------------------------------------------------- the command


def brevity(queries, responses):
    return [-float(len(response)) for response in responses]


@pytest.fixture(scope="module")
def recipe(folders):
    return Recipe.model_validate(
        {
            "name": "remainders",
            "data": {"prompts": {"dataset": str(folders / "prompts.jsonl"), "held_out": 0.4}},
            "policy": {"model": str(folders / "plain")},
            "reward": {"kind": "function", "function": "tiny_models:remainder_reward"},
            "generation": {"max_new_tokens": 5},
            "evaluation": {
                "prompts": 16,
                "perplexity": {"dataset": str(folders / "prompts.jsonl"), "split": "train", "column": "text"},
                "judges": {"short": {"kind": "function", "function": f"{__name__}:brevity"}},
            },
            "compute": {"device": "cpu", "precision": "fp32"},
        }
    )


@pytest.fixture(scope="module")
def store(prefect_server, mlflow_store, folders, recipe):
    """A store with two versions of `remainders`, `plain` and `other`, both made from `plain`."""
    held_out = {"query": ["w1 w2"], "prompt": ["w1 w2"], "input_ids": [[1, 2]]}
    Dataset.from_dict(held_out).save_to_disk(folders / "held-out")
    with mlflow_store(folders), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUN_DIR", str(folders / "runs"))
        for name in ("plain", "other"):
            with pipeline_run(recipe, str(folders / "runs")) as run:
                places = {"plain": str(folders / "plain"), "prompts": str(folders / "held-out")}
                register(run, places, str(folders / name), recipe, model=places["plain"])
        yield folders


def test_compare_by_its_command(store, recipe, capsys):
    command = ["compare", "reference", "models:/remainders/2", "models:/remainders@champion", str(store / "wider")]
    assert cli.main([*command, "--prompts", "12"]) == 0
    printed = capsys.readouterr().out
    assert "row beats column" in printed
    assert "on 12 prompts of remainders (no 95% interval: 12 prompts are too few)" in printed
    [run] = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.stage = 'compare'", output_format="list"
    )
    assert run.info.status == "FINISHED"
    tags, metrics, params = run.data.tags, run.data.metrics, run.data.params
    champion = mlflow.MlflowClient().get_registered_model("remainders").aliases["champion"]
    uris = ["reference", "models:/remainders/2", f"models:/remainders/{champion}", str(store / "wider")]
    assert [tags[f"model.{i}"] for i in range(1, 5)] == uris
    assert [params[f"model.{i}"] for i in range(1, 5)] == uris
    assert tags["model.2.url"].endswith("/#/models/remainders/versions/2?workflowType=machine_learning")
    inputs = mlflow.get_run(run.info.run_id).inputs.model_inputs  # a search leaves them out
    linked = {f"models:/{model.model_id}" for model in inputs}
    assert mlflow.MlflowClient().get_model_version("remainders", "2").source in linked
    assert metrics["prompts"] == 12
    assert metrics["perplexity/reference"] > 1
    assert metrics["reward/delta/wider"] == metrics["reward/mean/wider"] - metrics["reward/mean/reference"]
    assert "kl/remainders-2" in metrics
    assert "kl/wider" not in metrics

    found = {item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"report.html", "report.md", "responses.json", "plots"} <= found
    table = mlflow.load_table("responses.json", run_ids=[run.info.run_id])
    assert len(table) == 12
    page = next(line for line in printed.splitlines() if line.endswith("report.html"))
    assert "remainders 2" in Path(page).read_text()
    assert "\njudge short\nreference" in printed
    assert table["judge/short wider"].mean() == pytest.approx(metrics["judge/short/wider/policy"])
    assert metrics["judge/short/remainders-2/delta"] == pytest.approx(
        table["judge/short remainders 2"].mean() - table["judge/short reference"].mean()
    )
    assert "judge short, mean score" in Path(page).read_text()

    # the same prompts for whoever asks, with one tokenizer: those that the pipeline's evaluation draws
    again = table["score remainders 2"].mean()
    assert again == pytest.approx(metrics["reward/mean/remainders-2"])


def test_the_reference_is_kept_once(store):
    tags = [mlflow.MlflowClient().get_model_version("remainders", number).tags for number in ("1", "2")]
    assert tags[0]["reference"].startswith("runs:/")
    assert tags[0]["reference"] == tags[1]["reference"]  # the same base model: not stored again
    assert "reward_model" not in tags[0]  # a function: the recipe names it


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["models:/remainders/9", "reference"], "models:/remainders/9 is not in the registry"),
        (["models:/remainders/1"], "name at least two models"),
        (
            ["gpt2", "distilgpt2"],
            "none of gpt2, distilgpt2 is a registered version (models:/NAME/VERSION), whose recipe",
        ),
        (["reference", "gpt2", "--recipe", "embedded"], "'reference' is what the first registered version was trained"),
        (["models:/remainders/1", "/nowhere/model"], "/nowhere/model: no such folder"),
        (["models:/remainders/1", "reference", "--recipe", "embedded"], "is trained by a run of it"),
        (["models:/remainders/1", "reference", "--set", "seeds=1"], "unknown key 'seeds'"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(store, words, error, capsys):
    before = len(mlflow.search_runs(search_all_experiments=True))
    assert cli.main(["compare", *words]) == 2
    assert error in capsys.readouterr().err
    assert len(mlflow.search_runs(search_all_experiments=True)) == before


# ---------------------------------------------------------------- parents side by side


def three_parents(folder):
    """Parent runs of three recipes in the active store, as search_runs gives them; the figures are made up."""
    record = {
        "model": None,
        "reward_model": {"accuracy": 0.9, "checks_passed": True},
        "ppo": {"steps": 3, "seconds": 1.0, "kl": 2.0},
        **{key: figures()[key] for key in ("reward", "perplexity", "diversity")},
    }
    for i, name in enumerate(("embedded", "gpt2-imdb-lora", "t5-emotion-scratch")):
        with pipeline_run(load_recipe(name), str(folder)) as run:
            curves.send(run.parent_run_id, [Metric(curve, i + step, step, step) for curve in CURVES for step in (1, 2)])
            run.finish(record)
    return mlflow.search_runs(experiment_names=["rlhf"])


def test_parent_runs_carry_the_same_names_in_every_recipe(mlflow_store, tmp_path):
    with mlflow_store(tmp_path):
        runs = three_parents(tmp_path)
    assert sorted(runs["tags.recipe"]) == ["embedded", "gpt2-imdb-lora", "t5-emotion-scratch"]
    for kind in ("params.", "metrics."):
        columns = [column for column in runs.columns if column.startswith(kind)]
        assert len(columns) > 10
        assert runs[columns].notna().all(axis=None)  # MLflow gives None where a run lacks the name
    lora = runs.set_index("tags.recipe")["params.policy.lora.r"]  # there too where the section is off
    assert (lora["gpt2-imdb-lora"], lora["embedded"]) == ("32", "None")
