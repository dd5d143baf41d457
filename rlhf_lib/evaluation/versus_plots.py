"""Plots of several models beside each other: their scores, their gains on the first, and who beats whom."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lib.evaluation.plots import AFTER, BEFORE, INK, rows
from rlhf_lib.evaluation.versus import Versus


def score_boxes(done: Versus) -> Figure:
    """Each model's raw scores: quartiles, whiskers to the 5th and 95th percentile, and the mean."""
    figure, axes = _rows("Scores", "raw score", [s.name for s in done.showings])
    axes.boxplot(
        [s.sampled.scores for s in done.showings],
        orientation="horizontal",
        positions=range(len(done.showings)),
        whis=(5, 95),
        widths=0.5,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": BEFORE, "alpha": 0.5, "edgecolor": INK},
        medianprops={"color": INK},
        manage_ticks=False,
    )
    axes.scatter([s.mean[0] for s in done.showings], range(len(done.showings)), color=AFTER, zorder=3, s=28)
    axes.set_title("orange: mean", loc="right", fontsize=8, color=INK)
    return figure


def gain_intervals(done: Versus) -> Figure:
    """What each model's mean score gains on the first one's, with its paired 95% interval."""
    first, *others = done.showings
    figure, axes = _rows(f"Gain on {first.name}", "mean score gained, 95% interval", [s.name for s in others])
    for row, showing in enumerate(others):
        if showing.gain is not None:
            axes.plot(showing.gain.ci95, [row, row], color=INK, linewidth=1.6)
            axes.scatter([showing.gain.delta], [row], color=AFTER, zorder=3, s=34)
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.5)
    return figure


def win_map(done: Versus) -> Figure:
    """The win-rate matrix: on what share of the prompts the row's model scores higher than the column's."""
    names = [s.name for s in done.showings]
    figure, axes = _rows("Row beats column", "", names)
    shares = np.array([[np.nan if share is None else share for share in row] for row in done.win_rates])
    axes.imshow(shares, cmap="PuOr_r", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(~np.isnan(shares)):
        share = shares[row, column]
        colour = "white" if abs(share - 0.5) > 0.35 else INK
        axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(names)), [textwrap.fill(name, 11) for name in names], fontsize=7)
    axes.set_xlim(-0.5, len(names) - 0.5)
    return figure


def _rows(title: str, label: str, names: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes with a row for each name, the first on top."""
    figure, axes = rows(title, label, 1.5 + 0.5 * len(names))
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 22) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure, axes
