"""Whether there are enough held-out prompts and pairs for what a run will say of them, before it trains anything."""

from __future__ import annotations

from rlhf_lib.errors import DataError
from rlhf_lib.recipe import Recipe
from rlhf_lib.statistics import SMALL_SAMPLE, counted


def check_sample_sizes(recipe: Recipe, prompts: int, pairs: int | None) -> list[str]:
    """What to warn of, where the recipe has `prompts` evaluation prompts and `pairs` held-out pairs (None: no pairs).

    Raises DataError for fewer pairs than reward.checks.min_pairs, which the reward's checks would refuse later.
    """
    checks, gates = recipe.reward.checks, recipe.registration.gates
    if pairs is not None and checks.min_pairs is not None and pairs < checks.min_pairs:
        more = "data.preferences.test"
        if recipe.data.preferences is not None and recipe.data.preferences.rankings is not None:
            more = "data.preferences.rankings.held_out"
        raise DataError(
            f"the reward can't be checked on {counted(pairs, 'held-out pair')}: reward.checks.min_pairs is "
            f"{checks.min_pairs}. Hold out more pairs ({more}), or lower min_pairs (null switches it off)"
        )
    warnings = []
    evaluated = min(prompts, recipe.evaluation.prompts)
    if recipe.data.prompts.unheld:
        if recipe.registration.promote and not gates.allow_unheld:
            warnings.append(
                "no prompts are held out (data.prompts.held_out is 0), so this run's version can't become champion; "
                "registration.gates.allow_unheld: true would let it"
            )
    elif gates.min_prompts is not None and evaluated < gates.min_prompts and recipe.registration.promote:
        warnings.append(
            f"with {counted(evaluated, 'evaluation prompt')} this run's version can't become champion: "
            f"registration.gates.min_prompts is {gates.min_prompts}. Evaluate on more (evaluation.prompts, "
            "data.prompts.held_out or .test), or lower min_prompts (null switches it off)"
        )
    elif evaluated < SMALL_SAMPLE:
        warnings.append(f"only {counted(evaluated, 'evaluation prompt')}: the win rate is {_uncertain(evaluated)}")
    if pairs is not None and (checked := min(pairs, checks.pairs)) < SMALL_SAMPLE:
        warnings.append(f"only {counted(checked, 'held-out pair')}: the reward's accuracy is {_uncertain(checked)}")
    return warnings


def _uncertain(count: int) -> str:
    """By the half-width of a share's 95% interval at 0.5."""
    return f"uncertain by up to {100 * 1.96 * 0.5 / count**0.5:.0f} percentage points"
