"""Measures of responses and scores, as pure functions: gain, win rate, KL, diversity, and which words moved."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from rlhf_lib.recipe import leaves
from rlhf_lib.statistics import Interval, mean_interval, standard_error


@dataclass(frozen=True)
class RewardDelta:
    """Raw scores of reference and policy on the same prompts, in the reward's own units; no `ci95` for a handful of
    prompts."""

    reference: float
    policy: float
    delta: float
    ci95: Interval | None
    win_rate: float
    reference_std: float
    prompts: int

    @property
    def record(self) -> dict[str, Any]:
        """In JSON: reference, policy, delta, ci95, win_rate and prompts."""
        named = {key: getattr(self, key) for key in ("reference", "policy", "delta", "ci95", "win_rate", "prompts")}
        return named | {"ci95": list(self.ci95) if self.ci95 else None}


def reward_delta(
    reference_N: Sequence[float],
    policy_N: Sequence[float],
    *,
    prompts: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> RewardDelta:
    """Mean scores (N,) and (N,), the i-th of both on the i-th prompt, with a paired bootstrap 95% interval of their
    difference where there are enough prompts. Rows with an equal entry in `prompts` (N,) answer the same prompt: they
    count as one, and are a cluster of the interval. Raises ValueError on unequal lengths, no scores or non-finite ones.
    """
    if len(reference_N) != len(policy_N):
        raise ValueError(f"a paired difference needs equal lengths, not {len(reference_N)} and {len(policy_N)}")
    deltas_N = np.asarray(policy_N, dtype=np.float64) - np.asarray(reference_N, dtype=np.float64)
    if not deltas_N.size or not np.isfinite(deltas_N).all():
        raise ValueError("a paired difference needs scores, and finite ones")
    return RewardDelta(
        reference=float(np.mean(reference_N)),
        policy=float(np.mean(policy_N)),
        delta=float(deltas_N.mean()),
        ci95=mean_interval(deltas_N.tolist(), clusters=prompts, seed=seed),
        win_rate=win_rate(reference_N, policy_N),
        reference_std=float(np.std(reference_N)),
        prompts=len(policy_N if prompts is None else set(prompts)),
    )


def win_rate(reference_N: Sequence[float], policy_N: Sequence[float]) -> float:
    """Share of prompts on which the policy scores higher, ties counting half."""
    difference = np.asarray(policy_N, dtype=np.float64) - np.asarray(reference_N, dtype=np.float64)
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def win_matrix(scores_KN: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """[i][j]: the share of the N prompts on which model i scores higher than model j, ties half; None for i = j."""
    return [
        [None if i == j else win_rate(others_N, own_N) for j, others_N in enumerate(scores_KN)]
        for i, own_N in enumerate(scores_KN)
    ]


def kl_per_response(
    policy_logprobs: Sequence[Tensor],
    reference_logprobs: Sequence[Tensor],
    prompts: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """KL(policy || reference) in nats per response and its standard error (nan for one prompt), responses to the same
    one of `prompts` (N,) clustered.

    Takes both models' log-probs of each response's tokens, N tensors (T_i,), where the responses are the policy's own
    samples: the mean over responses of the summed log-ratio (k1 of Schulman 2020, "Approximating KL divergence"),
    unbiased, and so at times negative near 0.
    """
    pairs = zip(policy_logprobs, reference_logprobs, strict=True)
    log_ratio_N = np.array([float((p.double() - r.double()).sum()) for p, r in pairs])
    return float(log_ratio_N.mean()), standard_error(log_ratio_N.tolist(), prompts)


_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-cased words and punctuation marks: the same units whatever the model's tokenizer."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order; none where there are fewer than n."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def distinct(texts: Sequence[str], n: int) -> float:
    """distinct-n of Li et al. 2016 ("A diversity-promoting objective function"): number of different n-grams in all the
    texts together over their number of words.

    It falls as texts are added, so compare sets of as many responses only. 0 where there isn't a word.
    """
    tokenized = [words(text) for text in texts]
    total = sum(map(len, tokenized))
    return len({gram for tokens in tokenized for gram in ngrams(tokens, n)}) / total if total else 0.0


def repetition(texts: Sequence[str], n: int = 2) -> float | None:
    """Mean over texts of 1 - different n-grams / n-grams (seq-rep-n of Welleck et al. 2020, "Neural text generation
    with unlikelihood training"), by words.

    Bigrams by default, for responses here may have a dozen words. None where no text has n words.
    """
    shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := ngrams(words(text), n))]
    return sum(shares) / len(shares) if shares else None


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


def flat_metrics(tree: Mapping[str, Any]) -> dict[str, float]:
    """`{"reward": {"delta": 1, "ci95": (0, 2)}}` -> `{"reward/delta": 1.0, "reward/ci95_low": 0.0, ...}`; metrics that
    don't apply (None) are left out, never 0, and so is what is said in words."""
    flat: dict[str, float] = {}
    for name, value in leaves(tree, "/").items():
        if value is None or isinstance(value, str):
            continue
        if name.endswith("ci95"):
            flat |= {f"{name}_low": float(value[0]), f"{name}_high": float(value[1])}
        else:
            flat[name] = float(value)
    return flat
