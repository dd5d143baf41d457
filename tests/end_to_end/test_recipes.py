"""The published recipes say what they must, and a recipe that says another thing anywhere is found out."""

import pytest
from recipe_table import EXPECTED, JUDGES, altered, differences

from rlhf_lib.recipe import load_recipe, shipped


def test_every_published_recipe_is_in_the_table() -> None:
    ours = {name for name in shipped() if name == "embedded" or name.endswith("-scratch")}  # agree with nothing else
    assert set(EXPECTED) == set(shipped()) - ours


@pytest.mark.parametrize("name", EXPECTED)
def test_the_recipe_says_what_it_must(name: str) -> None:
    assert differences(load_recipe(name)) == {}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, must in EXPECTED.items() for key in must])
def test_each_altered_value_is_found_out(name: str, key: str) -> None:
    assert key in differences(altered(name, key))


@pytest.mark.parametrize("folder", ["helpful-base", "harmless-base", None])
def test_one_override_chooses_helpful_harmless_or_both(folder: str | None) -> None:
    recipe = load_recipe("hh-rlhf-full", [f"data.prompts.data_dir={folder or 'null'}"])
    sources = [recipe.data.prompts, recipe.data.prompts.test, recipe.evaluation.perplexity]
    sources += [recipe.data.preferences.train, recipe.data.preferences.test]
    assert [source.data_dir for source in sources] == [folder] * 5


@pytest.mark.parametrize("name", sorted({*shipped()} - {"embedded"}))
def test_what_ppo_does_not_optimise_judges_and_gates(name: str) -> None:
    recipe = load_recipe(name)
    judges = {
        judge: {key: value for key, value in settings.model_dump(mode="json").items() if key in JUDGES[name][judge]}
        for judge, settings in recipe.evaluation.judges.items()
    }
    assert judges == JUDGES[name]
    assert all(judge.gate for judge in recipe.evaluation.judges.values())
    assert recipe.registration.gates.min_judge_delta == 0


def test_one_override_chooses_another_emotion() -> None:
    chosen, joy = load_recipe("flan-t5-emotion", ["reward.label=gratitude"]), load_recipe("flan-t5-emotion")
    assert set(differences(chosen)) == {"reward.label"}
    assert chosen.evaluation.judges["bert"].label == "gratitude"
    # the probes are about joy, and so they don't stand in the way of other emotions
    assert joy.reward.checks.min_probe_accuracy is None


def test_trlx_s_figures_in_steps_of_ours() -> None:
    """trlX counts updates: 128 rollouts in mini-batches of 32, 4 times over, are 16 of them and one step here."""
    ppo = load_recipe("flan-t5-emotion").ppo
    updates = ppo.batch_size // ppo.mini_batch_size * ppo.ppo_epochs
    assert updates == 16
    assert (ppo.steps, ppo.eval_every, ppo.checkpoint_every) == (5000 // 16, 100 // 16, 1000 // 16)
