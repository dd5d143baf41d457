"""From scores to advantages: rewards per token, generalised advantage estimation, whitening. Pure functions.

Shapes: B responses, T the longest response's tokens. `mask_BT` is 1 on real response tokens; entries off the mask
are ignored on the way in and zero on the way out.
"""

import torch
from torch import Tensor


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
