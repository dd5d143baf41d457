"""What the checks of a reward measure, as pure functions: accuracy, calibration, and how far scores follow length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from rlhf_lib.statistics import rank_correlation, wilson

Scores = NDArray[np.float64]

BINS = 10


def pairwise_outcomes(chosen_N: Scores, rejected_N: Scores) -> Scores:
    """1 where chosen scores higher, 0 where rejected does, 0.5 for a tie: (N,); the mean is the accuracy."""
    return np.heaviside(chosen_N - rejected_N, 0.5)


@dataclass(frozen=True)
class Reliability:
    """Mean predicted and observed preference of each bin that holds any, with its count: each (B,)."""

    predicted_B: Scores
    observed_B: Scores
    count_B: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: |predicted - observed|, bins weighted by their count."""
        return float(np.average(np.abs(self.predicted_B - self.observed_B), weights=self.count_B))


def reliability(chosen_N: Scores, rejected_N: Scores, bins: int = BINS) -> Reliability:
    """Predicted preference sigmoid(difference) against the observed one, in equal-width bins over [0, 1].

    Taken as (chosen, rejected) alone, every pair would be observed as 1 and any confident model look calibrated. So
    each pair enters in both orders, which is what a random order comes to on average, without the luck of the draw.
    """
    predicted_2N = expit(np.concatenate([chosen_N - rejected_N, rejected_N - chosen_N]))
    observed_2N = np.repeat([1.0, 0.0], chosen_N.size)
    bin_2N = np.minimum((predicted_2N * bins).astype(int), bins - 1)
    count_B = np.bincount(bin_2N, minlength=bins)
    some = count_B > 0
    mean = [np.bincount(bin_2N, v, minlength=bins)[some] / count_B[some] for v in (predicted_2N, observed_2N)]
    return Reliability(mean[0], mean[1], count_B[some])


def overconfidence(chosen_N: Scores, rejected_N: Scores, bins: int = BINS // 2) -> float:
    """By how much the share of pairs in order falls short of what their scores claim, sigmoid(|difference|), beyond
    what chance explains: counted from each bin's mean claim down to the upper end of the share's 95% interval (Wilson
    1927), bins weighted by their pairs.

    The expected calibration error grows with the noise in bins of few pairs, and counts a model that claims too little,
    as any does after a few steps: that leads PPO nowhere wrong.
    """
    claimed_N, right_N = expit(np.abs(chosen_N - rejected_N)), pairwise_outcomes(chosen_N, rejected_N)
    bin_N = np.minimum(((2 * claimed_N - 1) * bins).astype(int), bins - 1)
    short = 0.0
    for number in np.unique(bin_N):
        inside = bin_N == number
        count = int(inside.sum())
        short += count * max(0.0, float(claimed_N[inside].mean()) - wilson(float(right_N[inside].mean()), count)[1])
    return short / claimed_N.size


def length_bias(
    scores_N: Scores, lengths_N: Scores, other_scores_N: Scores | None = None, other_lengths_N: Scores | None = None
) -> float | None:
    """Spearman's rho of score and response length; of pairs, of the differences chosen - rejected. None: undefined.

    Between differences in that one order, what the prompt adds to score and length cancels, and a preference of the
    data for longer answers is only a shift of both, which ranks don't see: 0 for a model that scores quality however
    much longer the better answers are, 1 for one that scores length.
    """
    if other_scores_N is not None and other_lengths_N is not None:
        scores_N, lengths_N = scores_N - other_scores_N, lengths_N - other_lengths_N
    return rank_correlation(scores_N.tolist(), lengths_N.tolist())
