"""Metrics of one's own before and after: means, paired changes, and where they don't apply."""

from __future__ import annotations

import pytest

from rlhf_lib.evaluation.metrics import measure_both, metric_changes
from rlhf_lib.evaluation.report import build_report
from rlhf_lib.evaluation.results import BeforeAfter, Comparison, ModelResult, Sampled
from rlhf_lib.statistics import paired_bootstrap


def compared(before: list[str], after: list[str]) -> BeforeAfter:
    results = []
    for name, texts in (("reference", before), ("policy", after)):
        sampled = Sampled(texts, [float(len(text)) for text in texts], [1] * len(texts), [True] * len(texts))
        first = results[0].sampled.scores if results else None
        results.append(ModelResult.of(name, sampled, first=first, kl=(0.1, 0.01) if results else None))
    queries = [f"q{i}" for i in range(len(before))]
    return BeforeAfter(Comparison(queries, results, "reference", [[None, 1.0], [0.0, None]], True))


@pytest.mark.parametrize("prompts", [[f"q{i}" for i in range(60)], [f"q{i % 30}" for i in range(60)]])
def test_a_change_is_paired_and_clustered_by_prompt(prompts):
    before = {"a": [float(i % 7) for i in range(60)]}
    after = {"a": [value + i % 3 for i, value in enumerate(before["a"])]}
    (change,) = metric_changes(before, after, prompts, seed=3)
    delta, low, high = paired_bootstrap(before["a"], after["a"], clusters=prompts, seed=3)
    assert (change.delta, change.ci95) == (pytest.approx(delta), (low, high))
    assert change.record["ci95"] == [low, high]
    assert change.policy == pytest.approx(change.reference + 1.0)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0, None, 4.0], [2.0, 3.0, None], (2.5, 2.5, 1.0, None)),  # both apply to the first alone
        ([None, None], [1.0, 2.0], (None, 1.5, None, None)),
        (0.25, 0.5, (0.25, 0.5, 0.25, None)),
        (None, 0.5, (None, 0.5, None, None)),
    ],
)
def test_a_change_is_over_the_prompts_where_both_apply(before, after, expected):
    (change,) = metric_changes(
        {"a": before}, {"a": after}, ["p", "q", "r"][: len(before)] if isinstance(before, list) else []
    )
    assert (change.reference, change.policy, change.delta, change.ci95) == expected


def test_both_sides_are_measured_and_shown():
    comparison = compared(["x", "xx", "x"], ["xxx", "xx", "x"])
    before, after = measure_both([lambda outputs: {"n|x": [len(o) for o in outputs]}], comparison, None)
    assert (before, after) == ({"n|x": [1, 2, 1]}, {"n|x": [3, 2, 1]})
    report = build_report("t", comparison, metrics=metric_changes(before, after, comparison.queries))
    assert "| n\\|x | 1.33 | 2.00 | +0.667 |" in report.markdown()
    assert "Your metrics: means over" in report.markdown()
    assert "<td>n|x</td>" in report.html({})
    assert "Your metrics" not in build_report("t", comparison).html({})
