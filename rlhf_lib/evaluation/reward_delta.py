"""What the policy gained over the reference: paired scores, win rate, and the KL it was paid for with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rlhf_lib.statistics import paired_bootstrap


@dataclass(frozen=True)
class RewardDelta:
    """Raw scores of reference and policy on the same prompts, in the reward's own units."""

    reference: float
    policy: float
    delta: float
    ci95: tuple[float, float]
    win_rate: float
    reference_std: float


def reward_delta(reference_N: Sequence[float], policy_N: Sequence[float], *, seed: int = 0) -> RewardDelta:
    """Mean scores (N,) and (N,), the i-th of both on the i-th prompt, with a paired bootstrap 95% interval of their
    difference. Raises ValueError on unequal lengths, no scores or non-finite ones."""
    delta, low, high = paired_bootstrap(reference_N, policy_N, level=0.95, seed=seed)
    return RewardDelta(
        reference=float(np.mean(reference_N)),
        policy=float(np.mean(policy_N)),
        delta=delta,
        ci95=(low, high),
        win_rate=win_rate(reference_N, policy_N),
        reference_std=float(np.std(reference_N)),
    )


def win_rate(reference_N: Sequence[float], policy_N: Sequence[float]) -> float:
    """Share of prompts on which the policy scores higher, ties counting half."""
    difference = np.asarray(policy_N, dtype=np.float64) - np.asarray(reference_N, dtype=np.float64)
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def kl_per_response(policy_logprobs: Sequence[Tensor], reference_logprobs: Sequence[Tensor]) -> tuple[float, float]:
    """KL(policy || reference) in nats per response and its standard error (nan for one response).

    Takes both models' log-probs of each response's tokens, N tensors (T_i,), where the responses are the policy's own
    samples: the mean over responses of the summed log-ratio (k1 of Schulman 2020, "Approximating KL divergence"),
    unbiased, and so at times negative near 0.
    """
    pairs = zip(policy_logprobs, reference_logprobs, strict=True)
    log_ratio_N = np.array([float((p.double() - r.double()).sum()) for p, r in pairs])
    error = log_ratio_N.std(ddof=1) / math.sqrt(len(log_ratio_N)) if len(log_ratio_N) > 1 else math.nan
    return float(log_ratio_N.mean()), float(error)
