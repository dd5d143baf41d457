"""Metrics of one's own (`evaluation.metrics`), before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_lib.evaluation.results import BeforeAfter, slug
from rlhf_lib.ppo.evaluation import Metric, Values, metric_mean, metric_values
from rlhf_lib.statistics import Interval, mean_interval


@dataclass(frozen=True)
class MetricChange:
    """A metric of the reference's responses and the policy's; None where it applies to no sample.

    `delta` is the mean difference over the prompts where it applies to both, with its paired 95% interval unless these
    are a handful; for a metric with one value for all samples together, the difference, without an interval.
    """

    name: str
    reference: float | None
    policy: float | None
    delta: float | None
    ci95: Interval | None

    @property
    def key(self) -> str:
        """The name, as part of a tracker's."""
        return slug(self.name)

    @property
    def record(self) -> dict[str, Any]:
        """In JSON, under the names that the reward's change has."""
        interval = None if self.ci95 is None else list(self.ci95)
        return {"reference": self.reference, "policy": self.policy, "delta": self.delta, "ci95": interval}


def measure_both(
    metrics: Sequence[Metric], comparison: BeforeAfter, tokenizer: PreTrainedTokenizerBase
) -> tuple[Values, Values]:
    """The metrics' values of the reference's responses and of the policy's. Raises ModelError as `metric_values`."""
    columns = comparison.columns
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    before, after = (
        metric_values(metrics, comparison.queries, side.texts, rows=rows, tokenizer=tokenizer)
        for side in (comparison.reference, comparison.policy)
    )
    return before, after


def metric_changes(before: Values, after: Values, prompts: Sequence[str], *, seed: int = 0) -> list[MetricChange]:
    """What changed, metric by metric. Answers to the same one of the `prompts` are a cluster of the intervals."""
    return [_change(name, before.get(name), after.get(name), prompts, seed) for name in {**before, **after}]


def _change(
    name: str,
    before: list[float | None] | float | None,
    after: list[float | None] | float | None,
    prompts: Sequence[str],
    seed: int,
) -> MetricChange:
    means = metric_mean(before), metric_mean(after)
    if isinstance(before, list) and isinstance(after, list):
        triples = zip(before, after, prompts, strict=True)
        deltas = [(b - a, prompt) for a, b, prompt in triples if a is not None and b is not None]
        if not deltas:
            return MetricChange(name, *means, None, None)
        values, clusters = (list(column) for column in zip(*deltas, strict=True))
        return MetricChange(name, *means, fmean(values), mean_interval(values, clusters=clusters, seed=seed))
    one_each = None not in means
    return MetricChange(name, *means, means[1] - means[0] if one_each else None, None)  # type: ignore[operator]
