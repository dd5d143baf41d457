"""Statistics shared by the reward model's checks and the evaluation: intervals and standard errors of means whose
values may come in clusters, and rank correlation."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from scipy import stats

DRAWS_AT_ONCE = 4_000_000  # indices held in memory while resampling: 32 MB
# With fewer values a percentile bootstrap's 95% interval is too narrow: of 5 normal ones it covers the mean 85% of the
# time, of 10 90%, of 20 93%; of skewed ones less (Hesterberg 2015, "What teachers should know about the bootstrap").
LEAST_FOR_INTERVAL = 20
SMALL_SAMPLE = 100  # up to here a share, such as a win rate, is only known to 10 points or worse either way

Interval = tuple[float, float]


def bootstrap_mean(
    values: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of `values` (N,) with its percentile bootstrap interval (Efron 1979): (mean, low, high).

    Values with an equal label in `clusters` (N,) are drawn together (the cluster bootstrap; Cameron, Gelbach and Miller
    2008), since two answers to one prompt tell less than answers to two. The same seed gives the same interval. One
    cluster, or equal values, give an interval of width 0. Raises ValueError on no values and on non-finite ones, whose
    mean would mean nothing.
    """
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or not values_N.size or not np.isfinite(values_N).all():
        raise ValueError(f"bootstrap_mean needs a flat, non-empty row of finite values, not shape {values_N.shape}")
    sums_G, sizes_G = _cluster_sums(values_N, clusters)
    means_R = np.concatenate(list(_resampled_means(sums_G, sizes_G, resamples, np.random.default_rng(seed))))
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return float(values_N.mean()), float(low), float(high)


def standard_error(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Standard error of the mean of `values` (N,): sqrt(G / (G - 1) * sum of squared cluster sums of deviations) / N
    for G clusters (Liang and Zeger 1986), the usual std / sqrt(N) where each value is its own; nan for one cluster."""
    values_N = np.asarray(values, dtype=np.float64)
    sums_G, _ = _cluster_sums(values_N - values_N.mean(), clusters)
    count = sums_G.size
    return math.sqrt(count / (count - 1) * float((sums_G**2).sum())) / values_N.size if count > 1 else math.nan


def _cluster_sums(values_N: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of each cluster's values, (G,) each, clusters in the order of their first value."""
    if clusters is None:
        return values_N, np.ones_like(values_N)
    numbers: dict[Hashable, int] = {}
    index_N = [numbers.setdefault(label, len(numbers)) for label in clusters]
    if len(index_N) != values_N.size:
        raise ValueError(f"{values_N.size} values have {len(index_N)} cluster labels")
    return np.bincount(index_N, values_N), np.bincount(index_N).astype(np.float64)


def _resampled_means(
    sums_G: np.ndarray, sizes_G: np.ndarray, resamples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    rows = max(1, DRAWS_AT_ONCE // sums_G.size)
    alone = bool((sizes_G == 1).all())
    for start in range(0, resamples, rows):
        drawn = rng.integers(sums_G.size, size=(min(rows, resamples - start), sums_G.size))
        yield sums_G[drawn].mean(axis=1) if alone else sums_G[drawn].sum(axis=1) / sizes_G[drawn].sum(axis=1)


def paired_bootstrap(
    before: Sequence[float],
    after: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of `after - before` (both (N,), same prompt in the same place) with its bootstrap interval.

    Resampling whole pairs keeps what the two have in common out of the interval; `clusters` as in `bootstrap_mean`.
    Raises ValueError on unequal lengths.
    """
    if len(before) != len(after):
        raise ValueError(f"a paired difference needs equal lengths, not {len(before)} and {len(after)}")
    differences_N = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return bootstrap_mean(differences_N.tolist(), clusters=clusters, level=level, resamples=resamples, seed=seed)


def mean_interval(
    values: Sequence[float], *, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> Interval | None:
    """The bootstrap's 95% interval of the values' mean; None for fewer than `LEAST_FOR_INTERVAL` of them, or of their
    clusters."""
    few = len(values if clusters is None else set(clusters)) < LEAST_FOR_INTERVAL
    return None if few else bootstrap_mean(values, clusters=clusters, seed=seed)[1:]


def share_interval(share: float, count: int) -> Interval | None:
    """95% interval of a share of `count` things (Wilson 1927), which has a width even where the share is 0 or 1; None
    for fewer than `LEAST_FOR_INTERVAL` of them."""
    return wilson(share, count) if count >= LEAST_FOR_INTERVAL else None


def clustered_share_interval(values: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """Wilson's 95% interval of the mean of `values` (N,), each 0, 0.5 or 1, for as many things as the clustered values
    are worth: N over the design effect, at most N (Kish 1965; Korn and Graubard 1998), and where all are equal the
    number of clusters. Fewer than `LEAST_FOR_INTERVAL` clusters don't tell how much they differ, and are passed over.
    """
    count = float(len(values))
    if (groups := enough(clusters)) is not None:
        alone, together = standard_error(values), standard_error(values, groups)
        count = count * min(1.0, (alone / together) ** 2) if alone > 0 and together > 0 else float(len(set(groups)))
    return wilson(float(np.mean(values)), max(1.0, count))


def enough(clusters: Sequence[Hashable]) -> Sequence[Hashable] | None:
    """The clusters; None where they are fewer than `LEAST_FOR_INTERVAL`, too few to resample."""
    return clusters if len(set(clusters)) >= LEAST_FOR_INTERVAL else None


def wilson(share: float, count: float, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share of `count` things, one or more."""
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def counted(count: int, what: str) -> str:
    """`1 prompt`, `1,000 prompts`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def no_interval(count: int, what: str = "prompt") -> str:
    """Why there is no interval."""
    return f"no 95% interval: {counted(count, what)} {'is' if count == 1 else 'are'} too few"


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rho of two rows of equal length, ties at their mean rank; None where one of them is constant."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(stats.spearmanr(x, y).statistic)
