"""Metrics of one's own (`evaluation.metrics`), before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_lib.evaluation.results import BeforeAfter, slug
from rlhf_lib.ppo.evaluation import Metric, Values, metric_mean, metric_values
from rlhf_lib.statistics import paired_bootstrap


@dataclass(frozen=True)
class MetricChange:
    """A metric of the reference's responses and the policy's; None where it applies to no sample.

    `delta` is the mean difference over the prompts where it applies to both, with its paired 95% interval; for a metric
    with one value for all samples together, the difference, without an interval.
    """

    name: str
    reference: float | None
    policy: float | None
    delta: float | None
    ci95: tuple[float, float] | None

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
    before, after = (
        metric_values(metrics, comparison.queries, side.texts, tokenizer=tokenizer)
        for side in (comparison.reference, comparison.policy)
    )
    return before, after


def metric_changes(before: Values, after: Values, *, seed: int = 0) -> list[MetricChange]:
    """What changed, metric by metric. One that only one of the two has is no change."""
    return [_change(name, before.get(name), after.get(name), seed) for name in {**before, **after}]


def _change(
    name: str, before: list[float | None] | float | None, after: list[float | None] | float | None, seed: int
) -> MetricChange:
    means = metric_mean(before), metric_mean(after)
    if isinstance(before, list) and isinstance(after, list):
        pairs = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
        if not pairs:
            return MetricChange(name, *means, None, None)
        delta, low, high = paired_bootstrap(*zip(*pairs, strict=True), seed=seed)
        return MetricChange(name, *means, delta, (low, high) if len(pairs) > 1 else None)
    one_each = None not in means
    return MetricChange(name, *means, means[1] - means[0] if one_each else None, None)  # type: ignore[operator]
