"""Plots of a comparison: scores, gains and lengths before and after, or of several models beside each other."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lib.drawing import panels
from rlhf_lib.evaluation.baselines import Baselines
from rlhf_lib.evaluation.best_of_n import kl_bound
from rlhf_lib.evaluation.probes import ProbeResult
from rlhf_lib.evaluation.results import Comparison
from rlhf_lib.statistics import no_interval

BEFORE, AFTER, INK = "#8a94a6", "#d9622b", "#2b303b"  # told apart in grey and by the colour-blind
_SIZE, _DPI = (4.4, 3.0), 180


def score_histogram(reference: Sequence[float], policy: Sequence[float]) -> Figure:
    """Raw scores of both models' responses, overlaid on common bins, with their means."""
    return _overlaid(reference, policy, "Scores", "raw score")


def length_histogram(reference: Sequence[int], policy: Sequence[int]) -> Figure:
    """Response lengths in tokens, overlaid; one bin a token where there is room for that."""
    both = [*reference, *policy]
    low, high = min(both), max(both)
    width = max(1, -(-(high - low + 1) // 40))
    return _overlaid(reference, policy, "Response lengths", "tokens", np.arange(low - 0.5, high + width + 0.5, width))


def delta_histogram(deltas: Sequence[float], ci95: tuple[float, float] | None, prompts: int | None = None) -> Figure:
    """What the score gained on each prompt, with 0, the mean and its interval, where there is one; `prompts`: how many
    differ, null: all."""
    figure, axes = _counts("Gain per prompt", "score after - score before")
    _, edges, bars = axes.hist(deltas, bins=_edges(deltas).tolist(), color=AFTER, alpha=0.75)
    for left, bar in zip(edges, bars, strict=False):  # type: ignore[arg-type]
        if left + bar.get_width() / 2 < 0:
            bar.set_facecolor(BEFORE)
    axes.axvline(0, color=INK, linewidth=1)
    if ci95:
        axes.axvspan(*ci95, color=INK, alpha=0.15, linewidth=0)
    label = "mean, 95% interval shaded" if ci95 else f"mean ({no_interval(prompts or len(deltas))})"
    axes.axvline(float(np.mean(deltas)), color=INK, linestyle="--", linewidth=1.2, label=label)
    _legend(axes)
    return figure


def baseline_curve(found: Baselines) -> Figure:
    """Reward over sqrt(KL), after Gao et al. 2022: best-of-n's curve with its intervals, trained baselines and PPO, the
    latter on best-of-n's prompts."""
    best, ppo = found.best, found.same_kl
    assert best is not None
    assert ppo is not None
    figure, (axes,) = panels(1, *_SIZE, left=0.6, right=0.15, bottom=0.5, top=0.6, dpi=_DPI)
    _style(axes, "Reward over KL", "square root of the KL to the reference, nats", "reward")
    places = [kl_bound(n) ** 0.5 for n in range(1, best.most + 1)]
    axes.plot(places, best.rewards_nP.mean(axis=1), color=BEFORE, linewidth=1.4, label="best of n")
    for n, told in zip(best.sizes, best.baselines, strict=True):
        if told.ci95:
            axes.plot([places[n - 1]] * 2, told.ci95, color=BEFORE, linewidth=1)
        axes.scatter(places[n - 1], told.reward, color=BEFORE, s=14, zorder=3)
        axes.annotate(str(n), (places[n - 1], told.reward), (4, -9), textcoords="offset points", fontsize=7)
    for other in found.others:
        if other.kl is not None:
            axes.scatter(
                max(other.kl, 0.0) ** 0.5,
                other.reward,
                color=INK,
                marker="s",
                s=24,
                label=other.title.removesuffix(" answers"),
            )
    axes.scatter(max(ppo.kl, 0.0) ** 0.5, ppo.policy, color=AFTER, s=40, zorder=4, label="PPO")
    _legend(axes, columns=3)
    return figure


def probe_chart(probes: Sequence[ProbeResult]) -> Figure:
    """Each probe's logit difference before and after, an arrow from one to the other."""
    figure, axes = _rows("Next token", "logit difference, nats", 1.3 + 0.42 * len(probes))
    places = range(len(probes))
    for row, probe in zip(places, probes, strict=True):
        arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.0, "shrinkA": 4, "shrinkB": 4}
        axes.annotate("", (probe.policy, row), (probe.reference, row), arrowprops=arrow)
    axes.scatter([p.reference for p in probes], places, color=BEFORE, s=34, zorder=3, label="before")
    axes.scatter([p.policy for p in probes], places, color=AFTER, s=34, zorder=3, label="after")
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.5)
    names = [f"{textwrap.fill(p.prompt, 30)}\n{p.token.strip()} (+) / {p.against.strip()} (-)" for p in probes]
    axes.set_yticks(list(places), names, fontsize=7)
    axes.set_ylim(len(probes) - 0.4, -0.6)
    _legend(axes)
    return figure


def _overlaid(
    reference: Sequence[float], policy: Sequence[float], title: str, label: str, edges: np.ndarray | None = None
) -> Figure:
    figure, axes = _counts(title, label)
    edges = _edges([*reference, *policy]) if edges is None else edges
    for values, colour, name in ((reference, BEFORE, "before"), (policy, AFTER, "after")):
        mean = float(np.mean(values))
        axes.hist(values, bins=edges.tolist(), color=colour, alpha=0.6, label=f"{name}, mean {mean:.3g}")
        axes.axvline(mean, color=colour, linestyle="--", linewidth=1.4)
    _legend(axes)
    return figure


def _counts(title: str, label: str) -> tuple[Figure, Axes]:
    """Empty axes for a histogram of responses."""
    figure, (axes,) = panels(1, *_SIZE, left=0.6, right=0.15, bottom=0.5, top=0.6, dpi=_DPI)
    _style(axes, title, label, "responses")
    return figure, axes


def _rows(title: str, label: str, height: float) -> tuple[Figure, Axes]:
    """Empty axes for rows with names of any length; `height` in inches."""
    figure = Figure(figsize=(_SIZE[0], height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    _style(axes, title, label, "")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _style(axes: Axes, title: str, label: str, counted: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold", pad=22)  # room for the legend
    axes.set_xlabel(label, fontsize=9, color=INK)
    axes.set_ylabel(counted, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)


def _legend(axes: Axes, columns: int = 2) -> None:
    """Above the bars, where it hides none."""
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.1)


def _edges(values: Sequence[float]) -> np.ndarray:
    return np.histogram_bin_edges(values, bins=min(40, max(10, round(len(values) ** 0.5) * 2)))


def score_boxes(done: Comparison) -> Figure:
    """Each model's raw scores: quartiles, whiskers to the 5th and 95th percentile, and the mean."""
    figure, axes = _named_rows("Scores", "raw score", [s.name for s in done.results])
    axes.boxplot(
        [s.sampled.scores for s in done.results],
        orientation="horizontal",
        positions=range(len(done.results)),
        whis=(5, 95),
        widths=0.5,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": BEFORE, "alpha": 0.5, "edgecolor": INK},
        medianprops={"color": INK},
        manage_ticks=False,
    )
    axes.scatter([s.mean for s in done.results], range(len(done.results)), color=AFTER, zorder=3, s=28)
    axes.set_title("orange: mean", loc="right", fontsize=8, color=INK)
    return figure


def gain_intervals(done: Comparison) -> Figure:
    """What each model's mean score gains on the first one's, with its paired 95% interval where there is one."""
    first, *others = done.results
    shown = "95% interval" if first.ci95 else no_interval(done.distinct)
    figure, axes = _named_rows(f"Gain on {first.name}", f"mean score gained, {shown}", [s.name for s in others])
    for row, result in enumerate(others):
        if result.gain is not None and result.gain.ci95:
            axes.plot(result.gain.ci95, [row, row], color=INK, linewidth=1.6)
        if result.gain is not None:
            axes.scatter([result.gain.delta], [row], color=AFTER, zorder=3, s=34)
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.5)
    return figure


def win_map(done: Comparison) -> Figure:
    """The win-rate matrix: on what share of the prompts the row's model scores higher than the column's."""
    names = [s.name for s in done.results]
    figure, axes = _named_rows("Row beats column", "", names)
    shares = np.array([[np.nan if share is None else share for share in row] for row in done.win_rates])
    axes.imshow(shares, cmap="PuOr_r", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(~np.isnan(shares)):
        share = shares[row, column]
        colour = "white" if abs(share - 0.5) > 0.35 else INK
        axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(names)), [textwrap.fill(name, 11) for name in names], fontsize=7)
    axes.set_xlim(-0.5, len(names) - 0.5)
    return figure


def _named_rows(title: str, label: str, names: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes with a row for each name, the first on top."""
    figure, axes = _rows(title, label, 1.5 + 0.5 * len(names))
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 22) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure, axes
