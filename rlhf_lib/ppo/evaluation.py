"""Evaluation while PPO learns: what the policy answers to prompts that it isn't trained on, and what is measured there.

A metric is a function from samples to named values, as trlX's `metric_fn`:

    def metric_fn(samples, prompts, outputs, **kwargs) -> dict[str, list[float] | float]: ...
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lib.conversation import in_full
from rlhf_lib.errors import ModelError
from rlhf_lib.ppo.rollout import Responses
from rlhf_lib.ppo.statistics import std
from rlhf_lib.recipe.learning import JUDGE
from rlhf_lib.rewards.calling import keywords
from rlhf_lib.rewards.columns import row_columns
from rlhf_lib.rewards.failure import explained
from rlhf_lib.rewards.function import import_function

# keywords, of which it takes those that it names (all, with **kwargs): see `metric_values`
Metric = Callable[..., Mapping[str, Any]]
Values = dict[str, list[float | None] | float | None]

METRICS_KEY = "evaluation.metrics"
METRIC = ("samples", "prompts", "outputs", "tokenizer")  # the keywords beside the prompts' columns


@dataclass(frozen=True)
class Evaluation:
    """The policy on the evaluation prompts, which it answers with the same random numbers each time.

    `samples` has a row a prompt: `query`, `response`, `score`, `judge/NAME` for each judge, and the metrics' values.
    `stats` has the means under the names that `train` yields: `eval/mean_scores`, `eval/std_scores`,
    `eval/responses_len_mean`, `eval/kl` (to the reference, nats per response), `eval/judge/NAME` for each judge, and
    `eval/NAME` for each metric; one that applies to no sample is left out. With a reward function that is isolated,
    `eval/timeouts` has the number of answers that it couldn't score.
    """

    stats: dict[str, float]
    samples: list[dict[str, Any]] = field(repr=False)


def evaluation(
    rows: Sequence[Mapping[str, Any]],
    responses: Responses,
    scores_N: Tensor,
    metrics: Sequence[Metric],
    tokenizer: PreTrainedTokenizerBase,
    *,
    kl: float,
    judged: Mapping[str, Tensor] | None = None,
    timeouts: int | None = None,
) -> Evaluation:
    """From the N prompts' rows, and the responses to them with their raw scores (N,), the reward's and, by name, each
    judge's. `timeouts`: how many of them an isolated reward function couldn't score; None for any other."""
    queries, texts = [row["query"] for row in rows], responses.texts
    stats = {
        "eval/mean_scores": float(scores_N.mean()),
        "eval/std_scores": std(scores_N),
        "eval/responses_len_mean": sum(map(len, responses.response_ids)) / len(queries),
        "eval/kl": kl,
    }
    if timeouts is not None:
        stats["eval/timeouts"] = timeouts
    columns: dict[str, Sequence[Any]] = {"query": queries, "response": texts, "score": scores_N.tolist()}
    for name, given_N in (judged or {}).items():
        stats[f"{JUDGE}{name}"] = float(given_N.mean())
        columns[f"judge/{name}"] = given_N.tolist()
    values = metric_values(metrics, queries, texts, rows=rows, tokenizer=tokenizer) if metrics else {}
    for name, given in values.items():
        if f"eval/{name}" in stats or name in columns:
            raise ModelError(f"a metric is called {name!r}, which is a name of the trainer's own: rename it")
        if (mean := metric_mean(given)) is not None:
            stats[f"eval/{name}"] = mean
    columns |= metric_columns(values)
    samples = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Evaluation(stats, samples)


def metric_values(
    metrics: Sequence[Metric],
    queries: Sequence[str],
    responses: Sequence[str],
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    tokenizer: Any = None,
) -> Values:
    """What the metrics give for N samples: a list of N values, or one for all of them together, by name.

    Each is called as in trlX, with keywords: `samples` (query and response in one text), `prompts` (the queries),
    `outputs` (the responses), all lists of N texts; `tokenizer`; and each further column of the prompts' `rows`, a list
    of N. A function gets those that it names, or all if it has **kwargs.

    None and NaN mean that a metric doesn't apply. Raises ModelError, naming the function, for values that are not
    numbers, or not N.
    """
    samples = [in_full(query, response) for query, response in zip(queries, responses, strict=True)]
    offered: dict[str, Any] = dict(row_columns(rows))
    offered |= {"samples": samples, "prompts": list(queries), "outputs": list(responses), "tokenizer": tokenizer}
    values: Values = {}
    for metric in metrics:
        label = f"the metric {getattr(metric, '__name__', type(metric).__name__)}"
        found = metric(**keywords(metric, offered))
        if not isinstance(found, Mapping):
            raise ModelError(f"{label} gave {found!r:.80}: it must return a dict, name -> values over the samples")
        for name, given in found.items():
            if name in values:
                raise ModelError(f"{label} gives {name!r}, as another metric does: rename one of them")
            values[str(name)] = _checked(given, len(samples), f"{label} gave for {name!r}")
    return values


def import_metrics(paths: Sequence[str]) -> list[Metric]:
    """The recipe's `evaluation.metrics`, each `package.module:name`.

    Raises RecipeError where one can't be imported. What a metric raises later comes as RewardFailed that names it.
    """
    return [_named(path, import_function(path, METRICS_KEY)) for path in paths]


def _named(path: str, function: Metric) -> Metric:
    @functools.wraps(function)
    def called(**offered: Any) -> Mapping[str, Any]:
        with explained(f"{METRICS_KEY} {path}"):
            return function(**offered)

    called.__name__ = path
    return called


def _checked(given: Any, count: int, what: str) -> list[float | None] | float | None:
    given = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(given, list | tuple):
        return _number(given, what)
    if len(given) != count:
        raise ModelError(f"{what} {len(given)} values for {count} samples: give one each, or a single number")
    return [_number(value, what) for value in given]


def _number(value: Any, what: str) -> float | None:
    """The number; None for one that doesn't apply."""
    if value is None:
        return None
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, int | float):
        raise ModelError(f"{what} {value!r:.80}, which is no number")
    return float(value) if math.isfinite(value) else None


def metric_mean(values: list[float | None] | float | None) -> float | None:
    """The mean over the samples to which it applies; None where there are none."""
    if not isinstance(values, list):
        return values
    applying = [value for value in values if value is not None]
    return sum(applying) / len(applying) if applying else None


def metric_columns(values: Values) -> dict[str, list[float | None]]:
    """Those that have a value a sample."""
    return {name: column for name, column in values.items() if isinstance(column, list)}
