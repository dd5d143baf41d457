"""PPO's objective, as pure functions in the order of a step: what PPO is paid for a response, the KL to the reference,
advantages, and the two clipped losses.

Shapes: B responses, T the longest response's tokens. `mask_BT` is 1 on real response tokens; entries off the mask are
ignored on the way in and zero on the way out. The losses take flat inputs, one entry per real response token, (N,), and
return sums, not means, so that the caller divides by the number of real tokens of the whole mini-batch: micro-batches,
accumulation and processes then change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rlhf_lib.recipe import PPOConfig


@dataclass
class RunningMoments:
    count: float = 0.0
    mean: float = 0.0
    sum_squares: float = 0.0  # of the deviations from the mean

    def update(self, x: Tensor) -> None:
        """Take in a batch of any shape."""
        n, batch_mean = x.numel(), float(x.mean())
        shift, total = batch_mean - self.mean, self.count + n
        self.sum_squares += float(((x - batch_mean) ** 2).sum()) + shift**2 * self.count * n / total
        self.mean += shift * n / total
        self.count = total

    @property
    def std(self) -> float:
        """Unbiased; 1 before there are two values."""
        return (self.sum_squares / (self.count - 1)) ** 0.5 if self.count > 1 else 1.0


def shape_scores(
    raw_B: Tensor,
    ended: Sequence[bool],
    config: PPOConfig,
    *,
    constants: tuple[float, float],
    moments: RunningMoments,
    missing_eos_penalty: float | None,
) -> Tensor:
    """Normalised by `constants` (mean, std), scaled by the running `moments`, which take the batch in, clipped, less
    the penalty of a response that its limit has cut: (B,)."""
    mean, std = constants
    scores_B = (raw_B - mean) / std
    if config.scale_scores:
        moments.update(scores_B)
        scores_B = scores_B - moments.mean if config.normalize_scores else scores_B
        scores_B = scores_B / (moments.std + 1e-8)
    if config.clip_scores is not None:
        scores_B = scores_B.clamp(-config.clip_scores, config.clip_scores)
    if missing_eos_penalty is not None:
        cut_B = torch.tensor([not e for e in ended], device=scores_B.device)
        scores_B = scores_B - missing_eos_penalty * cut_B
    return scores_B


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


def kl_controller(config: PPOConfig) -> AdaptiveKL | FixedKL:
    """The one that the configuration asks for, at its start."""
    if config.kl_controller == "fixed":
        return FixedKL(config.kl_coef)
    return AdaptiveKL(config.kl_coef, config.kl_target, config.horizon)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the true entries of the mask."""
    return (x * mask).sum() / mask.sum()


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance over the true entries of the mask; 0 where there is a single one."""
    n = mask.sum()
    return (((x - masked_mean(x, mask)) ** 2) * mask).sum() / (n - 1).clamp(min=1)


def whiten(x_BT: Tensor, mask_BT: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to variance 1 over real tokens; `shift_mean=False` keeps the mean: rewards keep theirs."""
    mean = masked_mean(x_BT, mask_BT)
    white = (x_BT - mean) * torch.rsqrt(masked_var(x_BT, mask_BT) + 1e-8)
    return (white if shift_mean else white + mean) * mask_BT


def token_rewards(scores_B: Tensor, penalty_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`-penalty` on every token (the KL term, already weighted), plus the score on the last real one: (B, T)."""
    rewards_BT = -penalty_BT * mask_BT
    last_B = mask_BT.sum(1).long() - 1
    rewards_BT[torch.arange(len(scores_B), device=scores_B.device), last_B] += scores_B
    return rewards_BT


def gae(values_BT: Tensor, rewards_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): (advantages_BT, returns_BT).

    Responses are left-aligned, so the value after the last real token is 0: an episode ends with its response.
    """
    values_BT, rewards_BT = values_BT * mask_BT, rewards_BT * mask_BT
    advantages_BT = torch.zeros_like(rewards_BT)
    carried_B = torch.zeros_like(rewards_BT[:, 0])
    next_value_B = torch.zeros_like(carried_B)
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        carried_B = delta_B + gamma * lam * carried_B
        advantages_BT[:, t], next_value_B = carried_B, values_BT[:, t]
    advantages_BT = advantages_BT * mask_BT
    return advantages_BT, advantages_BT + values_BT


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of max(-A r, -A clip(r, 1-c, 1+c)), and sums of the ratio, approxkl, policykl and clipped tokens."""
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    with torch.no_grad():
        sums = {
            "ratio": ratio.sum(),
            "approxkl": 0.5 * (log_ratio**2).sum(),
            "policykl": -log_ratio.sum(),
            "clipfrac": (clipped > plain).sum().float(),
        }
    return torch.maximum(plain, clipped).sum(), sums


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half the sum of max((V - R)^2, (clip(V, V_old +- c) - R)^2), and sums of V, its squared error, clipped tokens."""
    clipped = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    plain_error, clipped_error = (values - returns) ** 2, (clipped - returns) ** 2
    with torch.no_grad():
        sums = {
            "vpred": values.sum(),
            "error": plain_error.sum(),
            "clipfrac": (clipped_error > plain_error).sum().float(),
        }
    return 0.5 * torch.maximum(plain_error, clipped_error).sum(), sums
