"""The models of a reward that are trained on the same pairs: one, or those in the terms of a sum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lib.training.reward_model import train_reward_model
from rlhf_lib.training.supervised import OnLog

if TYPE_CHECKING:
    from datasets import Dataset

    from rlhf_lib import recipe

Log = list[dict[str, float]]


def train_reward_parts(
    pairs: Dataset,
    start: str,
    output: Path,
    *,
    reward: recipe.RewardConfig,
    compute: recipe.ComputeConfig,
    seed: int,
    held_out: Dataset | None = None,
    on_log: OnLog | None = None,
) -> tuple[dict[str, float], Mapping[str, Log]]:
    """Train each of `reward.learned()` on `pairs`, from its own model or `start`, into its folder below `output`.

    Returns the metrics of `train_reward_model` and, by the part's path, those of each step. Raises as it does.
    """
    metrics: dict[str, float] = {}
    logs: dict[str, Log] = {}
    for path, section in reward.learned().items():
        metrics, logs[path] = train_reward_model(
            pairs,
            section.model or start,
            output / path,
            reward=section,
            compute=compute,
            seed=seed,
            held_out=held_out,
            on_log=on_log,
        )
    return metrics, logs
