"""The KL to the reference: estimators per token, and the controllers of its coefficient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(policy || reference) on the policy's own samples (Schulman 2020, "Approximating KL
    divergence"), same shape as the input.

    k1 = log p/q: unbiased, can be negative. k2 = (log p/q)^2 / 2: biased, low variance. k3 = q/p - 1 + log p/q:
    unbiased and never negative.
    """
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference**2
    if estimator == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"unknown KL estimator {estimator!r}: k1, k2 or k3")


@dataclass
class FixedKL:
    """A coefficient that stays."""

    value: float

    def update(self, kl: float, responses: int) -> None:
        """Nothing to do."""


@dataclass
class AdaptiveKL:
    """Proportional controller of Ziegler et al. 2019, section 2.2: the error against the target, clipped at +-0.2,
    moves the coefficient over `horizon` responses."""

    value: float
    target: float
    horizon: int

    def update(self, kl: float, responses: int) -> None:
        """`kl` in nats per response, measured over this many responses."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * responses / self.horizon
