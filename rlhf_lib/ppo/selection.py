"""Which step's policy is exported, when a run stops early, and the prompts that decide it, which nothing else uses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_lib.errors import DataError
from rlhf_lib.ppo.statistics import Stats
from rlhf_lib.recipe import PPOConfig, Recipe
from rlhf_lib.recipe.learning import JUDGE

MOST = 0.2  # of the different training prompts


def best_step(history: Sequence[Stats], name: str, max_kl: float | None = None, kl_coef: float = 0.0) -> int | None:
    """The first step with the highest such statistic, less `kl_coef` times the KL, of those whose `objective/kl` (nats
    per response) is at most `max_kl`; None where no such step has it. The KL that is charged is that of the same
    responses: `eval/kl` for a statistic of the evaluations, else `objective/kl`."""
    kl = "eval/kl" if name.startswith("eval/") else "objective/kl"
    values = [
        stats[name] - (kl_coef * stats[kl] if kl_coef else 0.0)
        if name in stats and (max_kl is None or stats["objective/kl"] <= max_kl)
        else -math.inf
        for stats in history
    ]
    return values.index(max(values)) + 1 if max(values, default=-math.inf) > -math.inf else None


def kept_step(history: Sequence[Stats], config: PPOConfig) -> int | None:
    """The step that `ppo.keep_best` exports; None where it names none, and the last one is."""
    name = config.best_statistic
    return None if name is None else best_step(history, name, config.keep_best_max_kl, config.keep_best_kl_coef)


def falls_for(history: Sequence[Stats], name: str) -> int:
    """At how many of the last evaluations in a row the statistic was below its highest value so far."""
    values = [stats[name] for stats in history if name in stats]
    return values[::-1].index(max(values)) if values else 0


def has_fallen(start: Stats, history: Sequence[Stats], config: PPOConfig) -> bool:
    """Whether `ppo.stop_when` ends the run here. `start`: the evaluation before the first step."""
    wanted = config.stop_when
    return wanted is not None and falls_for([start, *history], f"{JUDGE}{wanted.judge}") >= wanted.falls_for


def why_stopped(start: Stats, history: Sequence[Stats], config: PPOConfig) -> str | None:
    """Why a run ended before its last step, in words; None where it didn't."""
    if len(history) >= config.steps:
        return None
    if config.stop_when is None or not has_fallen(start, history, config):
        return "the mean score reached its threshold (ppo.stop_at_reward)"
    judge = config.stop_when.judge
    evaluations = enumerate([start, *history])
    values = {step: stats[f"{JUDGE}{judge}"] for step, stats in evaluations if f"{JUDGE}{judge}" in stats}
    best = max(values, key=lambda step: (values[step], step))
    when = f"at step {best}" if best else "before training"
    return (
        f"judge {judge} was below its best ({values[best]:.4g} {when}) {config.stop_when.falls_for} times in a row "
        "(ppo.stop_when)"
    )


def evaluations(start: Stats, history: Sequence[Stats]) -> list[Stats]:
    """`step` and the statistics eval/... of each evaluation, that before the first step (0) among them, if any."""
    every = [
        {"step": float(step)} | {name: value for name, value in stats.items() if name.startswith("eval/")}
        for step, stats in enumerate([start, *history])
    ]
    return [found for found in every if len(found) > 1]


def picks_by_prompts(recipe: Recipe) -> bool:
    """Whether held-out prompts decide what is exported: which step (`ppo.keep_best`), or when to stop
    (`ppo.stop_when`). They are training prompts then, which are not trained on, as the evaluation's would make its
    figures too good; a closed set has no prompts to spare."""
    picks = (recipe.ppo.best_statistic or "").startswith("eval/") or recipe.ppo.stop_when is not None
    return picks and recipe.ppo.eval_texts is None and not recipe.data.prompts.unheld


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
            "statistic of training, say ppo/mean_scores, and ppo.stop_when to null"
        )
    count = max(1, min(count, int(MOST * len(different))))
    drawn = np.random.default_rng([seed, 6]).permutation(len(different))[:count]
    chosen = {different[i] for i in drawn}
    first = {row["query"]: row for row in reversed(rows)}
    return [row for row in rows if row["query"] not in chosen], [first[query] for query in different if query in chosen]
