"""Scores of mean 0 and standard deviation 1 on the reference policy's samples (Ziegler et al. 2019, section 2.1).

A KL coefficient then means the same for every reward model. Ziegler et al. put the constants into the model's gain
and bias; we keep them beside it, so that reports stay in the raw score's units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rlhf_lib.errors import ModelError
from rlhf_lib.rewards import Reward, term_scores, timeouts
from rlhf_lib.rewards.calling import Columns
from rlhf_lib.statistics import counted

FILE = "normalization.json"


@dataclass(frozen=True)
class Normalization:
    """mean and std (population) of raw scores."""

    mean: float
    std: float

    def __call__(self, scores: Sequence[float]) -> list[float]:
        """(score - mean) / std, each."""
        return [(score - self.mean) / self.std for score in scores]

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path) -> Normalization:
        """What `save` has written. Raises ModelError where it hasn't."""
        try:
            return cls(**json.loads((folder / FILE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{folder / FILE} can't be read ({error}): run the reward's recipe again") from error


def fit_normalization(scores: Sequence[float]) -> Normalization:
    """The constants from raw scores of reference samples. Raises ModelError if they don't differ or aren't finite."""
    with np.errstate(invalid="ignore"):
        mean, std = float(np.mean(scores)), float(np.std(scores))
    if not math.isfinite(mean):
        raise ModelError(
            f"the reward can't be normalized: some of its scores of {counted(len(scores), 'reference sample')} are NaN "
            "or infinite. Make it finite for any text"
        )
    if not std > 1e-8 * max(1.0, abs(mean)):
        raise ModelError(
            f"the reward can't be normalized: it gives {counted(len(scores), 'reference sample')} the same score, "
            f"{mean:.4g}, and PPO couldn't learn from that either. Look at what it gives, or at data.prompts"
        )
    return Normalization(mean, std)


def normalized(reward: Reward, normalization: Normalization | None) -> Reward:
    """The reward with normalized scores; unchanged if `normalization` is None."""
    return reward if normalization is None else Normalized(reward, normalization)


class Normalized:
    """A reward with normalized scores, which is told what it reads (`sampled_scores`); None stays None."""

    reads_ends = reads_columns = True

    def __init__(self, reward: Reward, normalization: Normalization) -> None:
        self.reward, self.normalization = reward, normalization

    def __call__(
        self,
        queries: list[str],
        responses: list[str],
        *,
        ended: Sequence[bool] | None = None,
        columns: Columns | None = None,
    ) -> list[float | None]:
        """One score per (query, response). `ended`: which responses are whole rather than cut off; None: all."""
        scores = term_scores(self.reward, queries, responses, ended, columns)
        return [None if score is None else self.normalization([score])[0] for score in scores]

    @property
    def timeouts(self) -> int | None:
        """See `rlhf_lib.rewards.timeouts`."""
        return timeouts(self.reward)
