"""From the recipe's reward section to a Reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lib.errors import ModelError
from rlhf_lib.models.loading import load_causal_lm, load_classifier, load_config, load_tokenizer
from rlhf_lib.rewards import Reward, quoted_answer, term_scores, timeouts_of
from rlhf_lib.rewards.calling import Columns, required_columns
from rlhf_lib.rewards.classifier import ClassifierReward, label_column
from rlhf_lib.rewards.ensemble import Ensemble
from rlhf_lib.rewards.function import function_reward, import_reward
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
        return function_reward(reward.function or "", reward.isolate)
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
    columns: Columns | None = None,
) -> dict[str, Normalization]:
    """Fit the constants of each of `reward.scaled()` on the reference policy's samples and save them in its folder in
    `model`. Returns them by path. Raises ModelError where a part's scores don't differ or aren't finite.

    Samples that a part doesn't apply to are left out. `columns` as in `sampled_scores`."""
    found: dict[str, Normalization] = {}
    for path, part in reward.scaled().items():
        folder = model / path
        folder.mkdir(parents=True, exist_ok=True)
        given = term_scores(_build_part(part, folder, device), queries, responses, ended, columns)
        scores = [score for score in given if score is not None]
        try:
            if not scores:
                raise ModelError(f"it applies to none of {len(given)} reference samples: it gave None for each")
            found[path] = fit_normalization(scores)
        except ModelError as error:
            raise ModelError(f"{path} of the reward: {error}") from error
        found[path].save(folder)
    return found


class WeightedSum:
    """The sum of weight times score over the terms that apply to an answer, each of which is told what it reads
    (`sampled_scores`)."""

    reads_ends = reads_columns = True

    def __init__(self, terms: Sequence[tuple[float, Reward]]) -> None:
        self.terms = terms

    def __call__(
        self,
        queries: list[str],
        responses: list[str],
        *,
        ended: Sequence[bool] | None = None,
        columns: Columns | None = None,
    ) -> list[float]:
        """One score per (query, response). `ended`: which responses are whole rather than cut off; None: all. Raises
        ModelError for an answer that no term applies to."""
        scores_KN = [
            [None if score is None else weight * score for score in given]
            for weight, given in (
                (weight, term_scores(reward, queries, responses, ended, columns)) for weight, reward in self.terms
            )
        ]
        sums = []
        for row, column in enumerate(zip(*scores_KN, strict=True)):
            applying = [score for score in column if score is not None]
            if not applying:
                raise ModelError(
                    f"no term of the reward's sum applies to row {row}, {quoted_answer(queries, responses, row)}: all "
                    "gave None, and one must give a number"
                )
            sums.append(sum(applying))
        return sums

    @property
    def timeouts(self) -> int | None:
        """See `rlhf_lib.rewards.timeouts`."""
        return timeouts_of(reward for _, reward in self.terms)


def needed_columns(reward: recipe.RewardConfig) -> dict[str, list[str]]:
    """The prompts' columns without which its functions can't be called, by function; those that need none left out."""
    found = {path: needed for part in reward.parts.values() for path, needed in needed_columns(part).items()}
    if reward.kind == "function" and (needed := required_columns(import_reward(reward.function or ""))):
        found[reward.function or ""] = needed
    return found


def check_reward(reward: recipe.RewardConfig, *, trained_here: bool = False) -> None:
    """Raise what `build_reward` would, as far as that can be known without reading weights: a missing model, tokenizer,
    label or function. For a model that is still to be trained, only its starting point is checked, not its labels."""
    for part in reward.parts.values():
        check_reward(part)
    if reward.kind == "function":
        import_reward(reward.function or "")
    elif reward.model is not None:
        config = load_config(reward.model, reward.trust_remote_code)
        load_tokenizer(reward.model, reward.trust_remote_code, need_eos=reward.kind in ("preference", "ensemble"))
        if reward.kind in ("classifier", "pair") and not trained_here:
            label_column(config, reward.label)
