"""What flow runs are called: the name that somebody typed, else one that says what is run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import PurePath
from typing import Any

from prefect.runtime import flow_run

from rlhf_lib.credentials import redact
from rlhf_lib.errors import RLHFError
from rlhf_lib.recipe import load_recipe

_LONGEST, _VALUE = 80, 24  # characters of a name, and of a value in it

# what the forms of Prefect's two pages fill in: psi42-suzuki-nebula and Handmade-Zebra
_GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|"
    "psi|omega"
)
_PRODUCT = (
    "Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical|Ergonomic|"
    "Handcrafted|Tasty|Handmade|Incredible"
)
_FORMS = re.compile(rf"({_GREEK})\d*(-[a-z]+)+|({_PRODUCT})-[A-Z].*")


def typed_name() -> str | None:
    """The current flow run's name if a person gave it one; None if Prefect made it up."""
    name: str | None = flow_run.name
    return None if name is None or made_up(name) else name


def made_up(name: str) -> bool:
    """Whether a name is one of those that Prefect gives: its server's (brave-otter), or those of its pages' forms."""
    words = name.split("-")
    return (len(words) == 2 and _vocabulary().issuperset(words)) or _FORMS.fullmatch(name) is not None


def describe(recipe: str, overrides: Sequence[str]) -> str:
    """`embedded ppo.steps=100 kl_coef=0.1`: a recipe and what is overridden, each section named once, long values and
    long lists cut."""
    changes = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in overrides)}
    changes.pop("name", None)
    shown = [_recipe_name(recipe, overrides)]
    section = ""
    for key in sorted(changes, key=lambda key: _place(key, list(changes))):
        before, _, leaf = key.rpartition(".")
        shown.append(f"{leaf if before and before == section else key}={_short(changes[key])}")
        section = before
    while len(name := " ".join(shown)) > _LONGEST and len(shown) > 1:
        shown.pop()
    left = len(changes) + 1 - len(shown)
    return f"{name} +{left} more" if left else name


def _recipe_name(recipe: str, overrides: Sequence[str]) -> str:
    try:
        return load_recipe(recipe, list(overrides)).name
    except RLHFError:  # which the run itself will report
        return PurePath(recipe).stem


def _place(key: str, order: list[str]) -> int:
    """Keys of one section stand together, where its first one was given."""
    section = key.rpartition(".")[0]
    return next(i for i, other in enumerate(order) if other.rpartition(".")[0] == section)


def _short(value: str) -> str:
    value = redact(value.strip("\"'"))
    if len(value) <= _VALUE:
        return value
    if value.startswith(("{", "[")):
        return f"{value[0]}…{value[-1]}"
    if "/" in value:
        value = PurePath(value).name
    return value if len(value) <= _VALUE else f"{value[: _VALUE - 1]}…"


@cache
def _vocabulary() -> frozenset[str]:
    """The words that Prefect's server makes names of."""
    from coolname.data import config

    lists: list[Any] = list(config.values())
    return frozenset(word for made in lists for word in made.get("words", ()))
