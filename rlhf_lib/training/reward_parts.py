"""The models of a reward that are trained on the same pairs: one, or the members of an ensemble.

Members differ by their seed: the new head's weights, the order of the pairs, and which of them validate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rlhf_lib.training.reward_model import train_reward_model
from rlhf_lib.training.supervised import OnLog

if TYPE_CHECKING:
    from datasets import Dataset

    from rlhf_lib import recipe

Log = list[dict[str, float]]

SEEDS_APART = 1000  # between members, so that recipes with neighbouring seeds share none


def train_reward_parts(
    pairs: Dataset,
    start: str,
    output: Path,
    *,
    reward: recipe.RewardConfig,
    compute: recipe.ComputeConfig,
    seed: int,
    held_out: Dataset | None = None,
    policy: recipe.PolicyConfig | None = None,
    on_log: OnLog | None = None,
) -> tuple[dict[str, float], Mapping[str, Log]]:
    """Train each of `reward.learned()` on `pairs`, from its own model or `start`, into its folder below `output`.
    `policy`: the section whose model `start` is, which gives it its chat template.

    Returns the metrics of `train_reward_model`, of several parts their means and each one's after its path, and by path
    those of each step. Raises as it does.
    """
    found: dict[str, dict[str, float]] = {}
    logs: dict[str, Log] = {}
    parts = reward.learned()
    for number, (path, section) in enumerate(parts.items()):
        found[path], logs[path] = train_reward_model(
            pairs,
            section.model or start,
            output / path,
            reward=section,
            compute=compute,
            seed=seed + SEEDS_APART * number,
            held_out=held_out,
            policy=policy if section.model is None else None,
            on_log=on_log if len(parts) == 1 or on_log is None else _named(path, on_log),
        )
    first, *others = found.values()
    if not others:
        return first, logs
    metrics = {key: fmean(each[key] for each in found.values()) for key in first}
    return metrics | {f"{path}/{key}": value for path, each in found.items() for key, value in each.items()}, logs


def _named(path: str, on_log: OnLog) -> OnLog:
    return lambda step, metrics: on_log(step, {f"{path}/{key}": value for key, value in metrics.items()})
