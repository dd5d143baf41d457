"""The report of a reward's checks: plots and Markdown."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lib.drawing import panels
from rlhf_lib.rewards.check_measures import Reliability
from rlhf_lib.rewards.check_result import CheckReport

COLORS = {"chosen": "#1b7837", "rejected": "#b2182b", "response": "#2166ac"}


def figures(report: CheckReport) -> dict[str, Figure]:
    """The plots that apply, by file name: calibration.png, scores.png, length.png."""
    drawn: dict[str, Figure] = {}
    if report.reliability is not None:
        drawn["calibration.png"] = _calibration(report.reliability)
    if report.metrics.get("score_std"):
        drawn["scores.png"] = _scores(report)
        drawn["length.png"] = _length(report)
    return drawn


def _axes(title: str, x: str, y: str, bottom: float = 0.6) -> tuple[Figure, Axes]:
    figure, (axes,) = panels(1, 6.4, 4.4, left=0.9, bottom=bottom, dpi=110)
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _calibration(bins: Reliability) -> Figure:
    figure, axes = _axes(
        f"Calibration: expected error {bins.error:.3f}",
        "predicted preference, sigmoid(score difference)",
        "observed preference",
        bottom=0.9,  # room for the legend
    )
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfectly calibrated")
    axes.vlines(bins.predicted_B, bins.predicted_B, bins.observed_B, color="#d6604d", linewidth=2, label="error")
    axes.scatter(
        bins.predicted_B,
        bins.observed_B,
        s=20 + 300 * bins.count_B / bins.count_B.sum(),
        color=COLORS["response"],
        zorder=3,
        label="bin, area by its number of pairs",
    )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    figure.legend(frameon=False, loc="lower center", ncols=3, fontsize="small")
    return figure


def _scores(report: CheckReport) -> Figure:
    every = np.concatenate([row[np.isfinite(row)] for row in report.scores.values()])
    figure, axes = _axes(f"Scores: standard deviation {every.std():.3g}", "score", "texts")
    edges = np.histogram_bin_edges(every, bins=40).tolist()
    for kind, scores in report.scores.items():
        finite = scores[np.isfinite(scores)]
        axes.hist(finite, edges, color=COLORS[kind], alpha=0.5, label=f"{kind}, mean {finite.mean():.2f}")
        axes.axvline(finite.mean(), color=COLORS[kind], linestyle="--", linewidth=1)
    axes.legend(frameon=False)
    return figure


def _length(report: CheckReport) -> Figure:
    rho = report.metrics.get("length_correlation")
    title = "Length: rank correlation " + ("undefined" if rho is None else f"{rho:+.2f}")
    if "chosen" in report.scores:
        figure, axes = _axes(title, "characters, chosen - rejected", "score, chosen - rejected")
        x, y = (table["chosen"] - table["rejected"] for table in (report.lengths, report.scores))
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.axvline(0, color="grey", linewidth=0.8)
    else:
        figure, axes = _axes(title, "characters of the response", "score")
        x, y = report.lengths["response"], report.scores["response"]
    axes.scatter(x, y, s=9, alpha=0.5, color=COLORS["response"], linewidths=0)
    return figure


def markdown(report: CheckReport, images: list[str] | None = None) -> str:
    """The checks as a table, the other metrics, and the texts most worth reading; `images` are linked by file name."""
    verdict = "passed" if report.passed else "FAILED: " + ", ".join(check.name for check in report.failed)
    lines = [f"# Reward model checks: {verdict}", ""]
    lines += [line for sentence in report.gates_off for line in (f"> **{sentence}**", "")]
    lines += [
        "| check | what it measures | figure | threshold | passed | detail |",
        "|---|---|---|---|---|---|",
    ]
    for check in report.checks:
        bound = "not gated" if check.threshold is None else f"{check.bound} {check.threshold:g}"
        passed = "yes" if check.passed else "**no**"
        cells = (check.name, check.what, f"{check.figure:.4g}", bound, passed, _cell(check.detail))
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {value:.4g} |" for name, value in report.metrics.items()),
    ]
    for image in images or []:
        lines += ["", f"![{image.removesuffix('.png')}]({image})"]
    if report.examples:
        heading = "Pairs with the lowest margin" if "prompt" in report.examples[0] else "Highest and lowest scores"
        columns = list(report.examples[0])
        lines += ["", f"## {heading}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(_cell(row[column]) for column in columns)} |" for row in report.examples]
    return "\n".join(lines) + "\n"


def _cell(value: str | float) -> str:
    if not isinstance(value, str):
        return f"{value:.3f}"
    text = " ".join(value.split()).replace("|", "\\|")
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-140:]}"
