"""PPO's two clipped losses (Schulman et al. 2017, eq. 7 and 9), as sums over the tokens given. Pure functions.

Inputs are flat: one entry per real response token, shape (N,). Sums, not means, so that the caller divides by the
number of real tokens of the whole mini-batch: micro-batches, accumulation and processes then change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
