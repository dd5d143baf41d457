"""Which step's policy is exported, and the prompts that pick it, which nothing else uses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_lib.errors import DataError
from rlhf_lib.ppo.statistics import Stats

MOST = 0.2  # of the different training prompts


def best_step(history: Sequence[Stats], name: str, max_kl: float | None = None) -> int | None:
    """The first step with the highest such statistic, of those whose `objective/kl` (nats per response) is at most
    `max_kl`; None where no such step has it."""
    values = [
        stats.get(name, -math.inf) if max_kl is None or stats["objective/kl"] <= max_kl else -math.inf
        for stats in history
    ]
    return values.index(max(values)) + 1 if max(values, default=-math.inf) > -math.inf else None


def selection_split(
    rows: Sequence[Mapping[str, Any]], count: int, seed: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """(rows to train on, rows to pick the best step by), no query in both: `count` different queries drawn with the
    seed, or MOST of them where that is fewer, and at least one. The evaluation's prompts are others anyway.

    Raises DataError where all rows have one query.
    """
    different = list(dict.fromkeys(row["query"] for row in rows))
    if len(different) < 2:
        raise DataError(
            "there is but one training prompt, and none to spare that could pick a step: set ppo.keep_best to a "
            "statistic of training, say ppo/mean_scores"
        )
    count = max(1, min(count, int(MOST * len(different))))
    drawn = np.random.default_rng([seed, 6]).permutation(len(different))[:count]
    chosen = {different[i] for i in drawn}
    first = {row["query"]: row for row in reversed(rows)}
    return [row for row in rows if row["query"] not in chosen], [first[query] for query in different if query in chosen]
