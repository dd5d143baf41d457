"""From the recipe's reward section to a Reward."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lib.errors import ModelError, RecipeError
from rlhf_lib.models.loading import load_causal_lm, load_classifier, load_config, load_tokenizer
from rlhf_lib.rewards import Reward, checked_scores, sampled_scores
from rlhf_lib.rewards.classifier import ClassifierReward, label_column
from rlhf_lib.rewards.ensemble import Ensemble
from rlhf_lib.rewards.failure import explained
from rlhf_lib.rewards.likelihood import LikelihoodReward
from rlhf_lib.rewards.normalization import Normalization, fit_normalization, normalized

if TYPE_CHECKING:
    import torch

    from rlhf_lib import recipe


def build_reward(
    reward: recipe.RewardConfig, model: str | None = None, device: torch.device | str | None = None
) -> Reward:
    """The reward that the section describes, giving raw scores. `model`: where it was trained, null: `reward.model`; of
    a sum or an ensemble, the folder with what a run has made of its parts (`RewardConfig.parts`).

    Raises ModelError for an absent model or label, RecipeError for a function that can't be imported.
    """
    if reward.kind == "function":
        return function_reward(reward.function or "")
    if reward.kind == "sum":
        weights = [term.weight for term in reward.terms or []]
        return WeightedSum(list(zip(weights, _build_parts(reward, model, device), strict=True)))
    if reward.kind == "ensemble":
        return Ensemble(_build_parts(reward, model, device), reward.combine, reward.uncertainty_weight)
    name = model or reward.model
    if name is None:
        raise ModelError("the reward model isn't trained yet: run its recipe, or set reward.model to a trained one")
    if reward.kind == "likelihood":
        return LikelihoodReward(
            load_causal_lm(name, trust_remote_code=reward.trust_remote_code).to(device or "cpu"),  # type: ignore
            load_tokenizer(name, reward.trust_remote_code),
            max_length=reward.max_length,
            batch_size=reward.batch_size,
        )
    preference = reward.kind == "preference"
    return ClassifierReward(
        load_classifier(name, trust_remote_code=reward.trust_remote_code),
        load_tokenizer(name, reward.trust_remote_code, need_eos=preference),
        label=None if preference else reward.label,
        output=reward.output,
        pair=reward.kind == "pair",
        append_eos=preference,
        max_length=reward.max_length or (reward.train.max_length if preference else None),
        batch_size=reward.batch_size,
        device=device,
    )


def _build_parts(reward: recipe.RewardConfig, model: str | None, device: torch.device | str | None) -> list[Reward]:
    """The rewards that a reward combines, each on the scale that it is combined on."""
    if model is None and reward.has_folder:
        raise ModelError(f"the parts of reward.kind {reward.kind} aren't trained or scaled yet: run its recipe")
    found = []
    for name, part in reward.parts.items():
        folder = Path(model or "") / name
        built = _build_part(part, folder, device)
        found.append(normalized(built, Normalization.load(folder) if name in reward.scaled() else None))
    return found


def _build_part(part: recipe.RewardConfig, folder: Path, device: torch.device | str | None) -> Reward:
    made_there = part.parts or (part.kind == "preference" and part.model is None)
    return build_reward(part, str(folder) if made_there else None, device)


def scale_parts(
    reward: recipe.RewardConfig,
    model: Path,
    queries: Sequence[str],
    responses: Sequence[str],
    ended: Sequence[bool],
    device: torch.device | str | None = None,
) -> dict[str, Normalization]:
    """Fit the constants of each of `reward.scaled()` on the reference policy's samples and save them in its folder in
    `model`. Returns them by path. Raises ModelError where a part's scores don't differ or aren't finite."""
    found: dict[str, Normalization] = {}
    for path, part in reward.scaled().items():
        folder = model / path
        folder.mkdir(parents=True, exist_ok=True)
        scores = sampled_scores(_build_part(part, folder, device), queries, responses, ended)
        try:
            found[path] = fit_normalization(scores)
        except ModelError as error:
            raise ModelError(f"{path} of the reward: {error}") from error
        found[path].save(folder)
    return found


class WeightedSum:
    """The sum of weight times score over the terms, each of which is told what it reads (`sampled_scores`)."""

    reads_ends = True

    def __init__(self, terms: Sequence[tuple[float, Reward]]) -> None:
        self.terms = terms

    def __call__(self, queries: list[str], responses: list[str], *, ended: Sequence[bool] | None = None) -> list[float]:
        """One score per (query, response). `ended`: which responses are whole rather than cut off; None: all."""
        whole = [True] * len(responses) if ended is None else ended
        scores = [
            [weight * score for score in sampled_scores(reward, queries, responses, whole)]
            for weight, reward in self.terms
        ]
        return [sum(column) for column in zip(*scores, strict=True)]


def check_reward(reward: recipe.RewardConfig, *, trained_here: bool = False) -> None:
    """Raise what `build_reward` would, as far as that can be known without reading weights: a missing model, tokenizer,
    label or function. For a model that is still to be trained, only its starting point is checked, not its labels."""
    for part in reward.parts.values():
        check_reward(part)
    if reward.kind == "function":
        function_reward(reward.function or "")
    elif reward.model is not None:
        config = load_config(reward.model, reward.trust_remote_code)
        load_tokenizer(reward.model, reward.trust_remote_code, need_eos=reward.kind in ("preference", "ensemble"))
        if reward.kind in ("classifier", "pair") and not trained_here:
            label_column(config, reward.label)


def import_function(path: str, key: str = "reward.function") -> Callable[..., Any]:
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


def function_reward(path: str) -> Reward:
    """The imported function as a Reward with checked scores: one finite number per response.

    Raises RecipeError if it can't be imported; calling it raises RewardFailed if it raises, ModelError for bad scores.
    """
    function = import_function(path)

    def checked(queries: list[str], responses: list[str]) -> list[float]:
        with explained(f"reward.function {path}"):
            given = function(queries, responses)
            given = list(given) if isinstance(given, Iterator) else given  # a generator runs, and may raise, only now
        return checked_scores(given, queries, responses, f"function {path}").tolist()

    return checked
