"""The two helpers that PPO programs import from `trl.core`."""

from __future__ import annotations

import numpy as np
from transformers import set_seed

__all__ = ["LengthSampler", "set_seed"]


class LengthSampler:
    """Called, draws a length from [min_value, max_value), from NumPy's global stream, which `set_seed` seeds."""

    def __init__(self, min_value: int, max_value: int) -> None:
        if max_value <= min_value:
            raise ValueError(f"max_value ({max_value}) is exclusive and must be above min_value ({min_value})")
        self.values = list(range(min_value, max_value))

    def __call__(self) -> int:
        return int(np.random.choice(self.values))  # noqa: NPY002 - as TRL: programs seed this stream
