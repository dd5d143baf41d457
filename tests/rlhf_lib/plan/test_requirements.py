"""What a run needs, checked before it: judges that are the reward by another name."""

from __future__ import annotations

import pytest

from rlhf_lib.errors import RecipeError
from rlhf_lib.plan.requirements import check_distinct, check_requirements
from rlhf_lib.recipe import load_recipe


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
