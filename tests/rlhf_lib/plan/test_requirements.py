"""What a run needs, checked before it: judges that are the reward by another name."""

from __future__ import annotations

import pytest
from datasets import Dataset

from rlhf_lib.errors import RecipeError
from rlhf_lib.plan.requirements import check_columns, check_distinct, check_requirements
from rlhf_lib.recipe import Recipe, load_recipe


def brevity(queries, responses):
    return [-float(len(response)) for response in responses]


shortness = brevity


def made(judge: str):
    return load_recipe(
        "embedded",
        [
            f"reward={{kind: function, function: '{__name__}:brevity'}}",
            f"evaluation.judges.mine={{kind: function, function: '{__name__}:{judge}'}}",
        ],
    )


def test_a_function_by_another_name_is_no_judge():
    with pytest.raises(RecipeError, match=r"^evaluation\.judges\.mine: .*:shortness is the reward's function"):
        check_distinct(made("shortness"))
    check_distinct(made("made"))


def test_tasks_of_the_harness_are_looked_for(tmp_path):
    tasks = f"evaluation.lm_eval={{tasks: [arc_easy], include_path: {tmp_path / 'none'}}}"
    with pytest.raises(RecipeError, match=r"^evaluation\.lm_eval\.include_path .*/none: no such folder"):
        check_requirements(load_recipe("embedded", [tasks]))
    with pytest.raises(RecipeError, match=r"registration\.gates\.min_lm_eval_delta needs evaluation\.lm_eval"):
        load_recipe("embedded", ["registration.gates.min_lm_eval_delta=-0.02"])


def test_a_registered_model_that_turns_out_to_be_the_reward_is_no_judge():
    classifier = "{kind: classifier, model: '%s', label: joy}"
    recipe = load_recipe(
        "embedded", [f"reward={classifier % '/m'}", f"evaluation.judges.mine={classifier % 'models:/m/1'}"]
    )
    recipe.evaluation.judges["mine"].model = "/m"  # as preflight resolves it
    with pytest.raises(RecipeError, match=r"^evaluation\.judges\.mine is the reward itself"):
        check_distinct(recipe)


def solved(prompts, completions, solution, **kwargs):
    return [0.0 for _ in completions]


def test_a_column_that_a_function_needs_is_looked_for(tmp_path):
    Dataset.from_dict({"text": ["a b", "c d"], "solution": [1, 2], "level": [1, 1]}).to_json(tmp_path / "rows.jsonl")
    Dataset.from_dict({"text": ["a b", "c d"], "answer": [1, 2]}).to_json(tmp_path / "test.jsonl")
    own = {"kind": "function", "function": f"{__name__}:solved"}
    other = {"kind": "function", "function": f"{__name__}:brevity"}

    def made(reward=own, prompts=None, **sections) -> Recipe:
        rows = {"dataset": str(tmp_path / "rows.jsonl"), "query": {"kind": "text"}} | (prompts or {})
        base = {"name": "x", "data": {"prompts": rows}, "policy": {"model": "x"}, "reward": reward}
        return Recipe.model_validate(base | sections)

    check_columns(made())
    check_columns(made(prompts={"columns": ["solution"]}))
    test = {"test": {"dataset": str(tmp_path / "test.jsonl")}}
    check_columns(made(other, test))
    with pytest.raises(RecipeError, match=r"^reward\.function .*:solved needs the column solution, .* are level:"):
        check_columns(made(prompts={"columns": ["level"]}))
    with pytest.raises(RecipeError, match=r"needs the column solution, and the prompts' other columns are answer:"):
        check_columns(made(prompts=test))
    with pytest.raises(RecipeError, match=r"^evaluation\.judges\.exact\.function .*:solved needs the column solution"):
        check_columns(made(other, {"columns": []}, evaluation={"judges": {"exact": own}}))
    probes = {"checks": {"probes": [{"better": "a", "worse": "b"}]}}
    with pytest.raises(RecipeError, match=r"^reward\.checks\.probes are texts alone, .* needs the column solution"):
        check_columns(made(own | probes))
    with pytest.raises(RecipeError, match=r"^ppo\.eval_texts are texts alone"):
        check_columns(made(ppo={"eval_texts": ["a"], "eval_every": 1}))
