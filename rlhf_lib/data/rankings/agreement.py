"""How far annotators agree: Krippendorff's alpha (Krippendorff 2011) and the plain share of equal judgements.

A unit is a pair of a task's responses, a judgement of it +1 (the first is better), 0 (tie) or -1. Every pair counts in
both orders: how a task happens to list its responses then changes no figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import krippendorff
import numpy as np

from rlhf_lib.data.rankings.files import Ranking

Agreement = dict[str, dict[str, float | None]]


def judgements(rankings: Sequence[Ranking]) -> tuple[list[str], np.ndarray]:
    """The annotators, sorted, and what each says of every pair: (A, U), NaN where a pair wasn't judged."""
    names = sorted({ranking.annotator for ranking in rankings})
    units: dict[tuple[str, str, str], int] = {}
    entries = []
    for ranking in rankings:
        for first, second in combinations(ranking.task.responses, 2):
            unit = units.setdefault((ranking.task.id, first, second), len(units))
            value = np.sign(ranking.ranks[second] - ranking.ranks[first])
            entries.append((names.index(ranking.annotator), unit, value))
    values_AU = np.full((len(names), len(units)), np.nan)
    for row, unit, value in entries:
        values_AU[row, unit] = value
    return names, values_AU


def alpha(values_AU: np.ndarray) -> float | None:
    """Krippendorff's alpha of -1, 0, +1, ordinal, each unit in both orders: 1 full agreement, 0 chance. None where no
    unit has two judgements, or all of them are ties."""
    shared_AU = values_AU[:, (~np.isnan(values_AU)).sum(axis=0) > 1]
    if not shared_AU.size or not np.nansum(np.abs(shared_AU)):
        return None
    return float(krippendorff.alpha(np.hstack([shared_AU, -shared_AU]), level_of_measurement="ordinal"))


def annotator_agreement(names: Sequence[str], values_AU: np.ndarray) -> Agreement:
    """For each annotator: `alpha` against the majority of the others where they have one, `agreement` (the share of
    equal judgements over all the other annotators and the pairs that both judged), `pairs` judged, `ties` as a share
    of them. Figures without a pair in common are None."""
    judged_AU = ~np.isnan(values_AU)
    found: Agreement = {}
    for row, name in enumerate(names):
        others = np.arange(len(names)) != row
        equal, shared = (values_AU[others] == values_AU[row]).sum(), (judged_AU[others] & judged_AU[row]).sum()
        pairs = int(judged_AU[row].sum())
        found[name] = {
            "alpha": alpha(np.vstack([values_AU[row], majority(values_AU[others])])),
            "agreement": float(equal / shared) if shared else None,
            "pairs": pairs,
            "ties": float((values_AU[row] == 0).sum() / pairs),
        }
    return found


def agreement_matrix(values_AU: np.ndarray) -> list[list[float | None]]:
    """(A, A): the share of equal judgements of every two annotators, None where they judged no pair in common."""
    judged_AU = ~np.isnan(values_AU)
    shared_AA = judged_AU.astype(int) @ judged_AU.T.astype(int)
    equal_AA = (values_AU[:, None] == values_AU[None]).sum(axis=-1)
    return [
        [float(e / n) if n else None for e, n in zip(*rows, strict=True)]
        for rows in zip(equal_AA, shared_AA, strict=True)
    ]


def majority(values_AU: np.ndarray) -> np.ndarray:
    """(U,): the sign of the judgements' sum, so that a tie weighs nothing. NaN where nobody judged, and where as many
    say the one as the other: who is compared with a divided panel would look bad whatever he says."""
    total_U = np.nansum(values_AU, axis=0)
    unanimous_tie_U = (np.nan_to_num(values_AU) == 0).all(axis=0) & ~np.isnan(values_AU).all(axis=0)
    return np.where((total_U == 0) & ~unanimous_tie_U, np.nan, np.sign(total_U))


def flagged(found: Mapping[str, Mapping[str, float | None]], below: float) -> list[str]:
    """Annotators whose alpha against the others is below the threshold."""
    return [name for name, figures in found.items() if (a := figures["alpha"]) is not None and a < below]
