"""Running mean and variance of the scores (Chan et al. 1979), for scaling them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
