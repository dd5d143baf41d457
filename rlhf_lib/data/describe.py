"""Descriptions of a data set: its lengths as metrics and plots, its labels as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from rlhf_lib.drawing import panels as empty_panels

Lengths = Mapping[str, Sequence[int]]

_BINS = 50


def summarize(lengths: Sequence[int]) -> dict[str, float]:
    """Mean, median, 95th percentile and maximum, in the unit of `lengths`; empty for no lengths."""
    if not len(lengths):
        return {}
    values = np.asarray(lengths)
    metrics = {
        "mean": values.mean(),
        "median": np.median(values),
        "p95": np.quantile(values, 0.95),
        "max": values.max(),
    }
    return {name: float(value) for name, value in metrics.items()}


def length_histogram(panels: Mapping[str, Lengths]) -> Figure:
    """One panel per entry (its key labels the length axis), one outline per series in it.

    The y axis is the share of the series' rows, so that splits of different size compare; lengths above the panel's
    99th percentile are gathered in the last bin.
    """
    figure, every_axes = empty_panels(len(panels), 5.5, 4, top=0.2)
    for axes, (label, series) in zip(every_axes, panels.items(), strict=True):
        every = np.concatenate([np.asarray(lengths) for lengths in series.values()])
        top, low = np.quantile(every, 0.99), every.min()
        width = max(1, int(np.ceil((top - low + 1) / _BINS)))  # whole numbers: no empty bins between integers
        edges = np.arange(low, top + width + 1, width) - 0.5
        last = (edges[-2] + edges[-1]) / 2
        for color, (name, lengths) in zip(("tab:blue", "tab:orange", "tab:green"), series.items(), strict=False):
            weights = np.full(len(lengths), 100 / max(1, len(lengths)))
            legend = f"{name}: {len(lengths):,} rows, median {np.median(lengths):,.0f}"
            axes.hist(
                np.minimum(lengths, last),
                bins=edges.tolist(),
                weights=weights,
                label=legend,
                histtype="stepfilled",
                alpha=0.35,
                facecolor=color,
                edgecolor=color,
                linewidth=1.3,
            )
        axes.set_xlabel(label + (f" (last bin: {edges[-2] + 0.5:,.0f} and more)" if every.max() > edges[-1] else ""))
        axes.set_ylabel("rows, %")
        axes.set_ylim(top=axes.get_ylim()[1] * 1.15)
        axes.legend(frameon=False, loc="upper right")
    return figure


def label_bars(names: Sequence[str], splits: Mapping[str, Sequence[Sequence[int]]]) -> Figure:
    """The share of each split's texts that have a label, sorted by the first split; texts may have several."""
    figure = Figure(figsize=(6, 1.2 + 0.22 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    shares = {
        split: np.bincount([i for labels in rows for i in labels], minlength=len(names)) / max(1, len(rows)) * 100
        for split, rows in splits.items()
    }
    order = np.argsort(next(iter(shares.values())), kind="stable")
    height = 0.8 / len(shares)
    for place, (split, values) in enumerate(shares.items()):
        at = np.arange(len(names)) - place * height
        axes.barh(at, values[order], height, label=f"{split}: {len(splits[split]):,} texts")
    axes.set_yticks(np.arange(len(names)) - 0.4 + height / 2, [names[i] for i in order])
    axes.set_ylim(-1, len(names))
    axes.set_xlabel("texts with the label, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure
