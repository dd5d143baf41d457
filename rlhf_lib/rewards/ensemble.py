"""Several reward models as one reward (Coste et al. 2024, "Reward Model Ensembles Help Mitigate Overoptimization"):
PPO finds the mistakes of one model, and models trained with other seeds make other mistakes.

A Bradley-Terry score has an offset of its own in every model, so that a minimum over raw scores would be the score of
whichever model lies lowest. The members' scores are therefore scaled to mean 0, std 1 on the reference policy's samples
first, and the ensemble's score is in units of that standard deviation, no log-odds any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlhf_lib.rewards import Reward, sampled_scores, timeouts_of
from rlhf_lib.rewards.calling import Columns

Combine = Literal["mean", "worst", "uncertainty"]


def combine_scores(scores_KN: np.ndarray, how: Combine, uncertainty_weight: float = 0.0) -> np.ndarray:
    """One score (N,) from those of K members (K, N).

    mean: their mean. worst: their minimum (Coste et al.'s worst-case optimization). uncertainty: their mean less
    `uncertainty_weight` times their variance, divided by K (uncertainty-weighted optimization).
    """
    if how == "worst":
        return scores_KN.min(0)
    mean_N = scores_KN.mean(0)
    return mean_N - uncertainty_weight * scores_KN.var(0) if how == "uncertainty" else mean_N


class Ensemble:
    """A reward of several members' scores, combined; each member is told what it reads (`sampled_scores`)."""

    reads_ends = reads_columns = True

    def __init__(self, members: Sequence[Reward], combine: Combine, uncertainty_weight: float = 0.0) -> None:
        self.members, self.combine, self.uncertainty_weight = members, combine, uncertainty_weight

    def __call__(
        self,
        queries: list[str],
        responses: list[str],
        *,
        ended: Sequence[bool] | None = None,
        columns: Columns | None = None,
    ) -> list[float]:
        """One score per (query, response). `ended`: which responses are whole rather than cut off; None: all. Raises
        ModelError where a member doesn't apply to a response (None)."""
        scores_KN = self.scores(queries, responses, ended, columns)
        return combine_scores(scores_KN, self.combine, self.uncertainty_weight).tolist()

    def scores(
        self,
        queries: list[str],
        responses: list[str],
        ended: Sequence[bool] | None = None,
        columns: Columns | None = None,
    ) -> np.ndarray:
        """Each of the K members' scores of N responses: (K, N)."""
        given = [sampled_scores(member, queries, responses, ended, columns) for member in self.members]
        return np.array(given, dtype=np.float64)

    @property
    def timeouts(self) -> int | None:
        """See `rlhf_lib.rewards.timeouts`."""
        return timeouts_of(self.members)


@dataclass(frozen=True)
class Agreement:
    """How K members judge pairs: each one's accuracy (K,), ties counting half, and the mean over all answers of the
    members' standard deviation, in units of their scores on the reference's samples."""

    accuracies: list[float]
    disagreement: float


def agreement(chosen_KN: np.ndarray, rejected_KN: np.ndarray) -> Agreement:
    """From the members' scores of N chosen and N rejected answers, (K, N) each."""
    right_KN = (np.sign(chosen_KN - rejected_KN) + 1) / 2
    spread_2N = np.concatenate([chosen_KN, rejected_KN], axis=1).std(0)
    return Agreement(right_KN.mean(1).tolist(), float(spread_2N.mean()))
