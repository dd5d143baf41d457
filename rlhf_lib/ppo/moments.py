"""From raw scores to what PPO is paid, and the running mean and variance (Chan et al. 1979) that this takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rlhf_lib.recipe import PPO


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
    config: PPO,
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
