"""A gate that a recipe switches off has its reason in the recipe."""

import pytest

from rlhf_lib.errors import RecipeError
from rlhf_lib.recipe import ChecksConfig, load_recipe, shipped
from rlhf_lib.rewards.check_result import gates_off


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_says_why_each_gate_is_off(name: str) -> None:
    checks = load_recipe(name).reward.checks
    assert [gate for gate, why in checks.switched_off.items() if not why] == []
    assert set(checks.why) == set(checks.switched_off)  # and gives no reason for a gate that is on


def test_the_sentence_gives_the_reason_or_its_absence() -> None:
    off = dict.fromkeys(("min_accuracy", "max_length_correlation"))
    why = {"min_accuracy": "it rewards manners."}
    assert gates_off(ChecksConfig(**off, why=why)) == [
        "The reward's gate min_accuracy is off: it rewards manners.",
        "The reward's gate max_length_correlation is off, and reward.checks.why doesn't say why.",
    ]
    (told,) = gates_off(ChecksConfig(**off))
    assert told == (
        "The reward's gates min_accuracy and max_length_correlation are off, and reward.checks.why doesn't say why."
    )
    assert gates_off(ChecksConfig(why={"min_accuracy": "kept for later"})) == []


def test_a_reason_can_be_set_by_an_override_and_a_misspelt_gate_is_refused() -> None:
    given = ["reward.checks.min_accuracy=null", "reward.checks.why.min_accuracy=it rewards manners"]
    assert load_recipe("gpt2-imdb-positive", given).reward.checks.switched_off == {"min_accuracy": "it rewards manners"}
    with pytest.raises(RecipeError, match=r"why: there is no gate 'accuracy'\. The gates are min_pairs, min_accuracy"):
        load_recipe("embedded", ["reward.checks.why.accuracy=x"])
