"""Lengths in figures and drawn."""

import numpy as np
import pytest

from rlhf_lib.data.describe import length_histogram, summarize


def test_figures_of_lengths() -> None:
    assert summarize([1, 2, 3, 10]) == {"mean": 4.0, "median": 2.5, "p95": pytest.approx(8.95), "max": 10.0}
    assert summarize([]) == {}


def shares(axes) -> list[float]:
    """What each series' outline adds up to, from its path: its heights at the bins' left edges."""
    totals = []
    for patch in axes.patches:
        x, y = patch.get_xy().T
        outline = {left: top for left, top in zip(x, y, strict=True) if top > 0}
        totals.append(sum(outline.values()))
    return totals


def test_the_histogram_is_labelled_and_holds_every_row() -> None:
    rng = np.random.default_rng(0)
    train = [*rng.integers(5, 60, 1000).tolist(), 4000]  # a straggler must not flatten the rest
    figure = length_histogram({"prompt, tokens": {"train": train, "test": [5, 5, 9]}, "answer, characters": {"a": [7]}})
    prompts, answers = figure.axes
    assert prompts.get_xlabel().startswith("prompt, tokens (last bin: ")
    assert prompts.get_xlim()[1] < 100
    assert answers.get_xlabel() == "answer, characters"
    assert [text.get_text() for text in prompts.get_legend().get_texts()] == [
        f"train: 1,001 rows, median {np.median(train):.0f}",
        "test: 3 rows, median 5",
    ]
    figure.canvas.draw()


def test_bins_hold_whole_lengths() -> None:
    figure = length_histogram({"tokens": {"train": [2, 2, 3, 7]}})
    path = figure.axes[0].patches[0].get_xy()
    heights = {x + 0.5: y for x, y in path[1:] if y}  # the outline's left edges lie half below the lengths
    assert heights[2.0] == 50
    assert heights[7.0] == 25
