"""The stages of a recipe that trains a T5 and a classifier on nothing but labelled texts, with a real MLflow store."""

import json
import random

import mlflow
import pytest
from datasets import load_from_disk

from rlhf_lib.errors import ModelError
from rlhf_lib.recipe import Recipe
from rlhf_lib.rewards.build import build_reward
from tasks.base_model import train_base_model
from tasks.data import prepare_data
from tasks.results import Folders, StartingPolicy
from tasks.reward_model import prepare_reward_model
from tasks.tracking.runs import PipelineRun

NAMES = ["joy", "anger"]


@pytest.fixture
def folder(tmp_path):
    draw, folder = random.Random(0), tmp_path / "set"
    folder.mkdir()
    for split, count in (("train", 80), ("test", 20)):
        rows = []
        for i in range(count):
            label = draw.randrange(2)
            rows.append({"text": f"we saw {split} {i} and were {('glad', 'mad')[label]}", "labels": [label]})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make(folder, **reward) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "data": {
                "prompts": {
                    "dataset": str(folder),
                    "query": {"kind": "first_words", "min": 2, "max": 3},
                    "template": "{query}:",
                    "test": {},
                    "limit": 8,
                },
                "corpus": {},
                "labelled": {"label": "labels", "names": NAMES},
            },
            "policy": {
                "train": {
                    "from_scratch": {"architecture": "t5", "layers": 1, "width": 16, "heads": 2, "vocab_size": 300},
                    "max_steps": 3,
                }
            },
            "reward": {
                "kind": "classifier",
                "label": "joy",
                "normalize": True,
                "train": {"from_scratch": {"layers": 1, "width": 16, "heads": 2, "vocab_size": 300}, "max_steps": 3},
            }
            | reward,
            "generation": {"max_new_tokens": 6},
            "compute": {"device": "cpu", "precision": "fp32"},
        }
    )


def test_texts_alone_make_a_policy_and_its_reward(folder, tmp_path, mlflow_store, monkeypatch):
    recipe = make(folder)
    # all prompts are "we saw:", the evaluation's too: others for it
    (tmp_path / "asked.jsonl").write_text('{"text": "they met"}\n')
    recipe.data.prompts.test.dataset = str(tmp_path / "asked.jsonl")

    def artifacts(record):
        client = mlflow.MlflowClient()
        found = [a.path for a in client.list_artifacts(record.mlflow_run_id)]
        return {*found, *(a.path for a in client.list_artifacts(record.mlflow_run_id, "examples"))}

    with mlflow_store(tmp_path / "store"), mlflow.start_run() as parent:
        run = PipelineRun(run_dir=str(tmp_path / "run"), parent_run_id=parent.info.run_id)
        data = prepare_data.fn(recipe, run)
        assert data.label_names == NAMES
        assert data.preferences is None
        assert load_from_disk(data.corpus.train)[0]["prompt"] == "we saw:"
        assert data.metrics["labelled/train/kept"] == 80
        assert {"labels.png", "examples/corpus.json", "examples/labelled.json"} <= artifacts(data)

        base = train_base_model.fn(recipe, run, data)
        assert base.metrics["rows"] == 80
        assert base.metrics["perplexity/held_out"] > 1
        prompt = load_from_disk(base.prompts.train)[0]
        assert prompt["query"] == "we saw"
        assert prompt["input_ids"][-1] == 0

        reward = prepare_reward_model.fn(recipe, run, data, base)
        assert reward.normalization.std > 0
        assert 0 <= reward.metrics["accuracy/held_out"] <= 1
        assert build_reward(recipe.reward, reward.model)(["we saw"], [" it and were glad"])
        assert {"curve.png", "labels.png", "labels.json"} <= artifacts(reward)

        monkeypatch.setattr("rlhf_lib.training.classifier.fit", None)
        assert prepare_reward_model.fn(recipe, run, data, base) == reward

        for reused in (False, True):
            wrong = make(folder, label="job")
            wrong.data.prompts.test.dataset = recipe.data.prompts.test.dataset
            wrong.seed = 0 if reused else 1
            with pytest.raises(ModelError, match=r"no label 'job': set reward\.label to one of joy, anger"):
                prepare_data.fn(wrong, run)


def test_another_label_to_reward_needs_no_other_classifier(folder, tmp_path, mlflow_store, monkeypatch):
    with mlflow_store(tmp_path / "store"), mlflow.start_run() as parent:
        run = PipelineRun(run_dir=str(tmp_path / "run"), parent_run_id=parent.info.run_id)
        policy = StartingPolicy(model="m", fingerprint="f", prompts=Folders(train="", test=""))
        recipe, other = make(folder, normalize=False), make(folder, normalize=False, label="anger")
        data = prepare_data.fn(recipe, run)
        reward = prepare_reward_model.fn(recipe, run, data, policy)
        monkeypatch.setattr("rlhf_lib.training.classifier.fit", None)
        assert prepare_reward_model.fn(other, run, data, policy) == reward


def test_answers_judged_one_by_one_make_a_reward(tmp_path, mlflow_store):
    folder = tmp_path / "judged"
    folder.mkdir()
    for split, count in (("train", 60), ("test", 20)):
        rows = [
            {
                "prompt": [{"role": "user", "content": f"How was {split} {i}?"}],
                "completion": [{"role": "assistant", "content": f"We were {('mad', 'glad')[i % 2]}."}],
                "label": bool(i % 2),
                "text": f"{i} or {split}",
            }
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = make(folder, label="desirable", normalize=False)
    recipe.data.labelled.names, recipe.data.labelled.label, recipe.data.labelled.text = None, "label", "completion"
    recipe.reward.train.max_steps, recipe.reward.train.learning_rate = 60, 5e-3
    with mlflow_store(tmp_path / "store"), mlflow.start_run() as parent:
        run = PipelineRun(run_dir=str(tmp_path / "run"), parent_run_id=parent.info.run_id)
        data = prepare_data.fn(recipe, run)
        assert data.label_names == ["undesirable", "desirable"]
        row = load_from_disk(data.labelled.train)[0]
        assert row["text"] == row["prompt"] + row["completion"]
        assert row["prompt"].startswith("\n\nHuman: How was train")
        policy = StartingPolicy(model="m", fingerprint="f", prompts=Folders(train="", test=""))
        reward = prepare_reward_model.fn(recipe, run, data, policy)
        assert reward.metrics["accuracy/held_out"] > 0.9
