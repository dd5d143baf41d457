"""The data stage with a real MLflow store: record, run, reuse by content."""

import json
import shutil

import mlflow
import pytest
from datasets import load_from_disk
from mlflow.tracking import MlflowClient
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, PreTrainedTokenizerFast

from rlhf_lib.recipe import Recipe
from tasks.data import prepare_data
from tasks.results import PreparedData
from tasks.tracking.runs import PipelineRun

QUESTIONS = [f"Is number {i} odd?" for i in range(60)]


@pytest.fixture(scope="module")
def store(mlflow_store, tmp_path_factory):
    with mlflow_store(tmp_path_factory.mktemp("data-task")):
        yield


@pytest.fixture
def pipeline(store, tmp_path):
    """A parent run and its folder."""
    with mlflow.start_run() as parent:
        yield PipelineRun(run_dir=str(tmp_path / "runs"), parent_run_id=parent.info.run_id)


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for split, questions in (("train", QUESTIONS[:48]), ("test", QUESTIONS[48:])):
        rows = [{k: f"\n\nHuman: {q}\n\nAssistant: {k}" for k in ("chosen", "rejected")} for q in questions]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def model(tmp_path):
    """What the stage needs of a policy: its configuration and tokenizer."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "Human:": 1, "<e>": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="<e>").save_pretrained(tmp_path / "m")
    GPT2Config(n_positions=40).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def make(pairs, policy: dict, **changes) -> Recipe:
    recipe = {
        "name": "x",
        "data": {
            "prompts": {
                "dataset": str(pairs),
                "column": "chosen",
                "query": {"kind": "dialogue"},
                "test": {"split": "test"},
            },
            "preferences": {},
        },
        "policy": policy,
        "reward": {"checks": {"min_pairs": 10}},
    }
    return Recipe.model_validate(recipe | changes)


def test_the_stage_saves_shows_and_is_paid_for_once(pipeline, pairs, model, tmp_path) -> None:
    recipe = make(pairs, {"model": str(model)})
    record = prepare_data.fn(recipe, pipeline)
    assert PreparedData.model_validate_json(record.model_dump_json()) == record

    train = load_from_disk(record.prompts.train)
    assert train.column_names == ["query", "prompt", "input_ids"]
    assert {len(ids) for ids in train["input_ids"]} == {6}
    assert len(train) == 48
    assert set(load_from_disk(record.texts.test)["query"]) == {
        f"\n\nHuman: {question}\n\nAssistant:" for question in QUESTIONS[48:]
    }
    assert set(load_from_disk(record.preferences.train)["rejected"]) == {" rejected"}

    client = MlflowClient()
    child = client.get_run(record.mlflow_run_id)
    assert child.data.tags["mlflow.parentRunId"] == pipeline.parent_run_id
    assert child.data.metrics.items() >= {"prompts/train/kept": 48, "preferences/test/rows": 12}.items()
    assert child.data.metrics["prompt_tokens/train/mean"] == 6
    sets = {entry.tags[0].value: entry.dataset for entry in child.inputs.dataset_inputs}
    assert set(sets) == {"prompts/train, preferences/train", "prompts/test, preferences/test"}
    digest = sets["prompts/train, preferences/train"].digest
    assert len(digest) == 36
    assert record.fingerprints["prompts/train"].startswith(digest)
    assert {item.path for item in client.list_artifacts(child.info.run_id)} == {
        "examples",
        "lengths.png",
        "report.json",
    }
    assert len(mlflow.load_table("examples/prompts.json", run_ids=[child.info.run_id])) == 10

    # the same rows and the same model elsewhere are the same work
    moved = make(shutil.copytree(pairs, tmp_path / "moved"), {"model": str(shutil.copytree(model, tmp_path / "m2"))})
    with mlflow.start_run(nested=True) as later:
        other = pipeline.model_copy(update={"parent_run_id": later.info.run_id})
        assert prepare_data.fn(moved, other).mlflow_run_id == record.mlflow_run_id
    children = f"tags.`mlflow.parentRunId` = '{other.parent_run_id}'"
    tags = [run.data.tags for run in mlflow.search_runs(output_format="list", filter_string=children)]
    assert [(tag["reused"], tag["reused_from"]) for tag in tags] == [("true", record.mlflow_run_id)]


def test_what_changes_the_prompts_is_done_anew(pipeline, pairs, model) -> None:
    policy = {"model": str(model)}
    made = [prepare_data.fn(make(pairs, policy), pipeline).mlflow_run_id]
    for changes in ({"seed": 1}, {"generation": {"max_new_tokens": 34}}):
        made.append(prepare_data.fn(make(pairs, policy, **changes), pipeline).mlflow_run_id)
    row = {k: f"\n\nHuman: One more?\n\nAssistant: {k}" for k in ("chosen", "rejected")}
    with (pairs / "train.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    more = prepare_data.fn(make(pairs, policy), pipeline)
    assert more.metrics["prompts/train/rows"] == 49
    assert len({*made, more.mlflow_run_id}) == 4


def test_what_is_lost_and_what_leaks_is_told_in_every_run(pipeline, pairs, model, caplog) -> None:
    rows = [json.loads(line) for line in (pairs / "train.jsonl").read_text().splitlines()]
    same = [{"chosen": row["chosen"], "rejected": row["chosen"]} for row in rows[:30]]
    (pairs / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*same, *rows[30:]]))
    recipe = make(pairs, {"model": str(model)})
    expected = "data: 30 of 48 (62%) training pairs dropped: 30 with the same chosen and rejected answer"
    for reused in (False, True):
        caplog.clear()
        with caplog.at_level("INFO"):
            record = prepare_data.fn(recipe, pipeline)
        assert [(line.levelname, line.getMessage()) for line in caplog.records if "of 48" in line.getMessage()] == [
            ("WARNING", expected)
        ], reused
    report = mlflow.artifacts.load_dict(f"{mlflow.get_run(record.mlflow_run_id).info.artifact_uri}/report.json")
    assert report["losses"] == [expected.removeprefix("data: ")]


def test_without_a_tokenizer_yet_the_prompts_are_text(pipeline, pairs) -> None:
    record = prepare_data.fn(make(pairs, {"train": {"from_scratch": {}}}), pipeline)
    assert record.prompts is None
    assert load_from_disk(record.texts.train).column_names == ["query", "prompt"]
    assert "prompt_characters/train/mean" in record.metrics
