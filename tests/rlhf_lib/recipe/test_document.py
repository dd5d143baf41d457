"""docs/recipes.md holds every key of the model, as it is now."""

from pathlib import Path

from rlhf_lib.recipe import flatten, load_recipe, shipped
from rlhf_lib.recipe.document import document, groups

PAGE = Path(__file__).parents[3] / "docs/recipes.md"


def test_the_page_is_what_the_generator_gives():
    assert PAGE.read_text() == document(), "docs/recipes.md is out of date: run `make docs` and commit it"


def test_every_key_has_a_description():
    bare = [name for group in groups() for name, schema in group.keys.items() if not schema.get("description")]
    assert bare == [], "give these fields in rlhf_lib/recipe/ a description"


def test_every_section_is_introduced():
    assert [group.name for group in groups() if not group.about] == []


def test_every_setting_of_the_shipped_recipes_is_on_the_page():
    listed = {name for group in groups() for name in (*group.keys, group.name)}  # a section that is null is a leaf too
    for name in shipped():
        recipe = load_recipe(name)
        assert set(flatten(recipe)) <= listed
        assert f"\n| `{name}` | {recipe.description} | " in PAGE.read_text()


def test_types_bounds_and_defaults_are_in_words():
    page = PAGE.read_text()
    for row in (
        "| `ppo.steps` | integer ≥ 1 | `100` | one step: one rollout batch with all its PPO epochs |",
        "| `ppo.checkpoint_every` | integer ≥ 1 or null | `50` | steps between checkpoints; null: none |",
        "| `generation.top_p` | number > 0, ≤ 1 | `1.0` | 1: off, as top_k |",
        "| `policy.critic` | `shared`, `separate`, `reward` | `\"shared\"` | the value head's trunk: the policy's; a "
        "copy; or that of the reward model, whose score head the value head then starts as |",
        "| `reward.checks.probes[].better` | text |  | the response that must score higher |",
        "| `ppo.betas` | list of 2 numbers | `[0.9, 0.999]` | AdamW's decay of its two moments |",
    ):
        assert f"\n{row}\n" in page
