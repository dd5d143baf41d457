"""Settings that don't validate, said in one line, for recipes and for configurations made in Python."""

from __future__ import annotations

import pytest

from rlhf_lib.errors import RecipeError, SettingsError
from rlhf_lib.recipe import GenerationConfig, LoraConfig, PPOConfig, Recipe, RewardConfig, load_recipe
from rlhf_lib.recipe.explain import ELSEWHERE


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        (PPOConfig, {"lr": 1e-5}, "PPOConfig: unknown key 'lr': did you mean 'learning_rate'?"),
        (PPOConfig, {"ppo_epoch": 2}, "PPOConfig: unknown key 'ppo_epoch': did you mean 'ppo_epochs'?"),
        (PPOConfig, {"target": 3.0}, "PPOConfig: unknown key 'target': did you mean 'kl_target'?"),
        (PPOConfig, {"nothing_like_it": 1}, "PPOConfig: unknown key 'nothing_like_it'"),
        (GenerationConfig, {"response_length": 5}, "unknown key 'response_length': did you mean 'max_new_tokens'?"),
        (LoraConfig, {"lora_alpha": 5}, "LoraConfig: unknown key 'lora_alpha': did you mean 'alpha'?"),
        (GenerationConfig, {"length_sampler": {"mim": 2}}, "unknown key 'length_sampler.mim': did you mean 'min'?"),
        (PPOConfig, {"learning_rate": "fast"}, "PPOConfig: learning_rate: Input should be a valid number"),
        (PPOConfig, {"learning_rate": -1.0}, "learning_rate: Input should be greater than or equal to 0 (given: -1.0)"),
        (PPOConfig, {"steps": 0, "lr": 1}, "unknown key 'lr'"),
        (RewardConfig, {"kind": "function"}, "RewardConfig: kind function needs function: package.module:name"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_a_configuration_made_in_python_says_what_was_meant(section, settings, message):
    with pytest.raises(SettingsError) as error:
        section(**settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ValueError)  # as it was before


def test_a_number_may_be_written_as_text():
    assert PPOConfig(learning_rate="1.5e-5").learning_rate == 1.5e-5


def test_a_section_inside_a_recipe_is_named_from_the_recipe_s_root():
    """All the faults of a tree together: a section of it raises nothing of its own."""
    policy = {"model": "m", "lora": {"rang": 1}}
    with pytest.raises(ValueError, match="2 validation errors for Recipe"):
        Recipe.model_validate({"name": "x", "data": {"prompts": {"dataset": "d"}}, "policy": policy, "ppo": {"lr": 1}})
    with pytest.raises(RecipeError, match=r"recipe embedded: unknown key 'ppo\.lr': did you mean 'learning_rate'\?$"):
        load_recipe("embedded", ["ppo.lr=1"])


def test_names_from_elsewhere_are_those_of_some_section():
    from rlhf_lib.recipe.document import groups

    known = {name.rpartition(".")[2] for group in groups() for name in group.keys}
    assert set(ELSEWHERE.values()) <= known
