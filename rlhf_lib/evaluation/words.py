"""Which words a policy says more, and less, than its reference did: where a reward leads shows in its vocabulary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lib.evaluation.diversity import words

PRIOR = 0.1  # of the words counted: what the common vocabulary weighs against the difference


@dataclass(frozen=True)
class Shift:
    """A word, how often it occurs before and after, and the z-score of the difference (positive: more often after)."""

    word: str
    before: int
    after: int
    z: float


def shifts(before: Sequence[str], after: Sequence[str], *, most: int = 10, least_z: float = 1.96) -> list[Shift]:
    """The words whose frequency changed most surely, from largest gain to largest loss; at most `most` either way.

    The z-scores are those of Monroe et al. 2008, "Fightin' Words", eq. 16-22: log-odds ratios over the standard error
    under a Dirichlet prior in proportion to the words' joint frequencies, which keeps rare words from the extremes.
    """
    counts = [Counter(word for text in texts for word in words(text)) for texts in (before, after)]
    joint = counts[0] + counts[1]
    total = joint.total()
    sizes = [count.total() for count in counts]
    prior_total = PRIOR * total
    found = []
    for word, together in joint.items():
        prior = PRIOR * together
        odds = [
            math.log((count[word] + prior) / (size + prior_total - count[word] - prior))
            for count, size in zip(counts, sizes, strict=True)
            if size + prior_total > count[word] + prior
        ]
        if len(odds) < 2:  # no other word in one of them
            continue
        error = math.sqrt(sum(1 / (count[word] + prior) for count in counts))
        found.append(Shift(word, counts[0][word], counts[1][word], (odds[1] - odds[0]) / error))
    found.sort(key=lambda shift: (-shift.z, shift.word))
    gained = [shift for shift in found if shift.z >= least_z][:most]
    lost = [shift for shift in found if shift.z <= -least_z][-most:]
    return gained + lost
