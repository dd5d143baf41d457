"""Names from before a move still import, with a warning that names the new place."""

import importlib
import sys

import pytest

from rlhf_lib import recipe
from rlhf_lib.moved import MODULES, NAMES


@pytest.mark.parametrize("old", MODULES)
def test_an_old_module_warns_and_gives_the_new_ones_names(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MODULES[old]}"):
        module = importlib.import_module(old)
    new = importlib.import_module(MODULES[old])
    shared = next(name for name in vars(new) if not name.startswith("_") and f"{old}.{name}" not in NAMES)
    assert getattr(module, shared) is getattr(new, shared)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("old", NAMES)
def test_an_old_name_is_the_new_one(old):
    module, _, name = old.rpartition(".")
    place, _, known = NAMES[old].rpartition(".")
    assert getattr(importlib.import_module(module), name) is getattr(importlib.import_module(place), known)


def test_old_names_of_the_recipes_sections():
    with pytest.warns(DeprecationWarning, match=r"rlhf_lib\.recipe\.PPO is now PPOConfig"):
        assert recipe.PPO is recipe.PPOConfig
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = recipe.Nothing
