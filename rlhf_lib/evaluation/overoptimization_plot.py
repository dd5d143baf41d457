"""The picture of over-optimisation: a panel each for the reward and every judge, over the square root of the KL."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lib.drawing import panels
from rlhf_lib.evaluation.best_of_n import BestOfN, kl_bound
from rlhf_lib.evaluation.judges import Judgement
from rlhf_lib.evaluation.overoptimization import REWARD, Course
from rlhf_lib.evaluation.plots import AFTER, BEFORE, INK
from rlhf_lib.evaluation.results import BeforeAfter
from rlhf_lib.recipe.learning import JUDGE

_WIDTH, _HEIGHT, _DPI = 4.4, 1.8, 180
_ABOVE, _BELOW = 0.55, 0.22  # inches for the legend and the axis label that all panels share
_LABELLED = 6  # steps that carry their number, at most


def overoptimization(
    course: Course, best: BestOfN | None, comparison: BeforeAfter, judged: Sequence[Judgement]
) -> Figure:
    """Gains since before training, each in its own units, the KL axis shared: PPO's evaluations in their order, the
    exported step, the judge's peak, best-of-n by the reward, and what the evaluation found of the exported policy."""
    gained = {f"{JUDGE}{each.name}": each.gained.delta for each in judged if each.gained is not None}
    final = {REWARD: comparison.reward.delta} | gained
    figure, every = panels(
        len(course.values), _WIDTH, _HEIGHT, columns=1, left=0.75, right=0.2, bottom=0.28, top=0.3, dpi=_DPI
    )
    for axes, name in zip(every, course.values, strict=True):
        title = "Reward, which PPO optimises" if name == REWARD else f"Judge {name.removeprefix(JUDGE)}"
        _best_of_n(axes, best, name)
        _path(axes, course, name)
        if name in final:
            place = max(comparison.kl, 0.0) ** 0.5
            axes.scatter(
                place, final[name], marker="D", s=26, color=INK, zorder=5, label="exported, evaluation's prompts"
            )
        axes.axhline(0, color=INK, linewidth=0.8, alpha=0.4, zorder=1)
        axes.set_title(title, loc="left", fontsize=9.5, color=INK, fontweight="bold")
        axes.set_ylabel("gain", fontsize=9, color=INK)
        axes.tick_params(labelsize=8, colors=INK)
        axes.margins(x=0.06, y=0.18)
    low = min(axes.get_xlim()[0] for axes in every)
    high = max(axes.get_xlim()[1] for axes in every)
    for axes in every:
        axes.set_xlim(low, high)
    every[-1].set_xlabel("square root of the KL to the reference, nats", fontsize=9, color=INK)
    for axes in every[:-1]:
        axes.tick_params(labelbottom=False)
    marks = {label: mark for axes in every for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    _grow(figure, every)
    height = figure.get_size_inches()[1]
    figure.legend(
        marks.values(), marks.keys(), loc="upper left", bbox_to_anchor=(0.02, 1 - 0.05 / height), ncols=2, fontsize=7.5,
        frameon=False, columnspacing=1.2, handletextpad=0.5, borderaxespad=0,
    )  # fmt: skip
    return figure


def _path(axes: Axes, course: Course, name: str) -> None:
    """PPO's evaluations, joined in their order, some with the number of their step; the exported one in a ring."""
    gains, roots = course.gains(name), course.roots
    axes.plot(roots, gains, color=AFTER, linewidth=1.4, marker="o", markersize=3.2, zorder=3, label="PPO, by step")
    if course.kept in course.steps:
        kept = course.steps.index(course.kept)
        axes.scatter(
            roots[kept], gains[kept], s=90, facecolor="none", edgecolor=INK, linewidth=1.3, zorder=4,
            label=f"exported step ({course.kept})",
        )  # fmt: skip
        axes.axvline(roots[kept], color=INK, linewidth=0.8, linestyle=":", zorder=1)
    apart = -(-len(gains) // _LABELLED)
    shown = {*range(0, len(gains) - apart // 2 - 1, apart), len(gains) - 1}
    if name != REWARD:
        top = course.peak(name)
        shown = {i for i in shown if abs(i - top) > apart // 2} | {top}
        axes.scatter(roots[top], gains[top], marker="^", s=34, color=AFTER, zorder=4, label="the judge's peak")
    for i in sorted(shown - {course.steps.index(course.kept)} if course.kept in course.steps else shown):
        axes.annotate(
            str(course.steps[i]), (roots[i], gains[i]), (0, -10), textcoords="offset points", ha="center", fontsize=6.5,
            color=INK,
        )  # fmt: skip


def _best_of_n(axes: Axes, best: BestOfN | None, name: str) -> None:
    """What the answer that the reward picks among n gains over one answer, by the reward or a judge."""
    if best is None:
        return
    found = {n: best.baseline(n) for n in best.sizes}
    own = name.removeprefix(JUDGE)
    values = {n: each.reward if name == REWARD else each.judges.get(own) for n, each in found.items()}
    points = [(kl_bound(n) ** 0.5, value - values[1]) for n, value in values.items() if value is not None]  # type: ignore[operator]
    if not points:
        return
    label = f"best of n by the reward, n to {best.most}"
    axes.plot(*zip(*points, strict=True), color=BEFORE, linewidth=1.4, marker="s", markersize=3, label=label)


def _grow(figure: Figure, every: Sequence[Axes]) -> None:
    """Make room above and below the panels, which keep their size."""
    width, before = figure.get_size_inches()
    height = before + _ABOVE + _BELOW
    figure.set_size_inches(width, height)
    for axes in every:
        left, bottom, across, up = axes.get_position().bounds
        axes.set_position((left, (bottom * before + _BELOW) / height, across, up * before / height))
