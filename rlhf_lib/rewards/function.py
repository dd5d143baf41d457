"""Reward functions of the user's own, by import path.

Light modules alone are imported here, for isolated functions (worker.py) begin with it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from rlhf_lib.errors import RecipeError
from rlhf_lib.rewards import checked_terms
from rlhf_lib.rewards.calling import Columns, by_keywords, call, required_columns, takes_texts
from rlhf_lib.rewards.failure import explained

if TYPE_CHECKING:
    from rlhf_lib.recipe.reward import IsolateConfig
    from rlhf_lib.rewards.isolate import IsolatedFunction

KEY = "reward.function"


def import_function(path: str, key: str = KEY) -> Callable[..., Any]:
    """Import `package.module:name`, from Python's path or the working directory.

    Raises RecipeError, which names the recipe's `key`, if there is no such function, and RewardFailed if its module
    raises while it is imported.
    """
    module_name, separator, name = path.partition(":")
    if not (separator and module_name and name):
        raise RecipeError(f"{key} {path!r} must have the form package.module:name")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with explained(f"{key} {path}: importing {module_name}", passing=(ImportError,)):
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(
            f"{key} {path}: module {module_name} can't be imported ({error}): install it, or run where it is"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        present = ", ".join(n for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
        raise RecipeError(f"{key} {path}: {module_name} has no function {name}; it has {present or 'none'}")
    return function


def import_reward(path: str) -> Callable[..., Any]:
    """The same of a function that can be called as a reward. Raises RecipeError for one of neither form."""
    function = import_function(path)
    if not by_keywords(function) and not takes_texts(function):
        raise RecipeError(
            f"{KEY} {path} can be called neither with (queries, responses), two lists of texts, nor by keywords as "
            "TRL's: write f(prompts, completions, **kwargs), with the columns that it reads"
        )
    return function


class FunctionReward:
    """The function as a reward: one finite number per response, or None where it doesn't apply.

    Raises RecipeError if it can't be imported; calling it raises RewardFailed if it raises, ModelError for bad scores
    and for a column that the prompts don't have.
    """

    reads_columns = True

    def __init__(self, path: str) -> None:
        self.path, self.function = path, import_reward(path)

    def __call__(
        self, queries: list[str], responses: list[str], *, columns: Columns | None = None
    ) -> list[float | None]:
        """One score per (query, response); `columns` as in `sampled_scores`."""
        columns = columns or {}
        check_columns(self.path, required_columns(self.function), columns)
        with explained(f"{KEY} {self.path}"):
            given = call(self.function, queries, responses, columns)
        return checked_terms(given, queries, responses, f"function {self.path}")


def check_columns(path: str, required: Collection[str], there: Collection[str]) -> None:
    """Raises RecipeError where the function needs a column that isn't there."""
    for name in required:
        if name not in there:
            present = ", ".join(sorted(there)) if there else "none"
            raise RecipeError(
                f"{KEY} {path} needs the column {name}, and the prompts' other columns are {present}: add it to their "
                "data set and to data.prompts.columns, or give the parameter a default"
            )


def function_reward(path: str, isolate: IsolateConfig | None = None) -> FunctionReward | IsolatedFunction:
    """The function as a reward, in a process of its own with `isolate`."""
    if isolate is None:
        return FunctionReward(path)
    from rlhf_lib.rewards.isolate import IsolatedFunction

    return IsolatedFunction(path, isolate)
