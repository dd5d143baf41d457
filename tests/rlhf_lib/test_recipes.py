"""The shipped recipes, read as data: what their keys must say together."""

import pytest

from rlhf_lib.recipe import load_recipe, shipped

DIALOGUES = [
    name
    for name in shipped()
    if (prompts := load_recipe(name).data.prompts).dataset == "Anthropic/hh-rlhf" and prompts.query.kind == "dialogue"
]


def test_there_are_recipes_of_whole_dialogues():
    assert {"hh-helpful-scratch", "hh-rlhf-full"} <= set(DIALOGUES)


@pytest.mark.parametrize("name", DIALOGUES)
def test_a_policy_that_read_whole_dialogues_stops_at_the_humans_turn_and_pays_for_being_cut_off(name):
    recipe = load_recipe(name)
    assert recipe.generation.stop == "\n\nHuman:"
    assert recipe.generation.missing_eos_penalty
    # so that the penalty means the same whatever the reward model's scale
    assert recipe.reward.normalize or recipe.ppo.scale_scores
