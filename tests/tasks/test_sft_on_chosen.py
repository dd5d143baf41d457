"""The trained baseline, with a real MLflow store: what it learns from, and that it is kept."""

import json

import mlflow
import pytest

from rlhf_lib.errors import RecipeError
from rlhf_lib.models.loading import load_tokenizer
from rlhf_lib.recipe import Recipe
from tasks.base_model import train_base_model
from tasks.data import prepare_data
from tasks.sft_on_chosen import train_on_chosen
from tasks.stage.keys import check_stage_of
from tasks.tracking.runs import PipelineRun


def make(folder="x", **evaluation) -> Recipe:
    scratch = {"layers": 1, "width": 16, "heads": 2, "positions": 64, "vocab_size": 300}
    prompts = {"dataset": str(folder), "column": "chosen", "query": {"kind": "dialogue"}, "test": {"split": "test"}}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "data": {"prompts": prompts, "preferences": {"train": {"split": "train"}, "test": {"split": "test"}}},
            "policy": {"train": {"from_scratch": scratch, "answers": "both", "batch_size": 8, "learning_rate": 0.02}},
            "generation": {"max_new_tokens": 4},
            "evaluation": evaluation,
            "compute": {"device": "cpu", "precision": "fp32"},
        }
    )


def test_it_learns_from_as_many_answers_all_chosen_and_is_kept(tmp_path, mlflow_store, monkeypatch):
    for split in ("train", "test"):
        asked = [f"\n\nHuman: {split} {i}?\n\nAssistant:" for i in range(50)]
        rows = [{"chosen": f"{text} yes yes", "rejected": f"{text} no no"} for text in asked]
        tmp_path.joinpath(f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    recipe = make(tmp_path)
    with mlflow_store(tmp_path / "store"), mlflow.start_run() as parent:
        run = PipelineRun(run_dir=str(tmp_path / "run"), parent_run_id=parent.info.run_id)
        data = prepare_data.fn(recipe, run)
        base = train_base_model.fn(recipe, run, data)
        chosen = train_on_chosen.fn(recipe, run, data, base)
        assert (base.metrics["rows"], chosen.metrics["rows"]) == (100, 50)
        settings = [mlflow.get_run(done.mlflow_run_id).data.params for done in (base, chosen)]
        assert [(given["answers"], given["epochs"]) for given in settings] == [("both", "1.0"), ("chosen", "2.0")]
        assert chosen.metrics["loss/held_out"] < base.metrics["loss/held_out"]
        assert load_tokenizer(chosen.model).get_vocab() == load_tokenizer(base.model).get_vocab()
        monkeypatch.setattr("rlhf_lib.training.sft.fit", None)
        assert train_on_chosen.fn(recipe, run, data, base) == chosen


@pytest.mark.parametrize(
    "changed", [{"evaluation": {"sft_on_chosen": False}}, {"policy": {"model": "m"}}], ids=["off", "given"]
)
def test_only_a_recipe_that_has_the_stage_can_stop_after_it(changed):
    other = Recipe.model_validate(make().model_dump() | changed)
    assert not other.trains_on_chosen
    with pytest.raises(RecipeError, match="tiny has no stage sft_on_chosen"):
        check_stage_of(other, "sft-on-chosen")
    assert check_stage_of(make(), "sft-on-chosen") == "sft_on_chosen"


@pytest.mark.parametrize("judges", [{}, {"given": {"model": "m"}}, {"asked": {"kind": "llm", "model": "m"}}])
def test_nor_after_judges_where_it_trains_none(judges):
    with pytest.raises(RecipeError, match=r"^tiny has no stage judges: it needs one of evaluation\.judges with pairs"):
        check_stage_of(make(judges=judges), "judges")
    for made in ({"pairs": "held_out"}, {"kind": "ensemble", "models": ["a", "b"]}):
        assert check_stage_of(make(judges=judges | {"made": made}), "judges") == "judges"
