"""The report on annotators' files: agreement as Markdown and as a plot, and the rejected rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rlhf_lib.data.rankings.consensus import Feedback
from rlhf_lib.data.rankings.files import Rejected

LISTED = 20  # rejected rows of the Markdown; the table has them all


def markdown(found: Feedback) -> str:
    """Counts, agreement by annotator, and the rejected rows."""
    counts, rejected = found.report, found.rejected
    pairs = ", ".join(f"{name} {count}" for name, count in counts["pairs"].items())
    dropped = ", ".join(f"{name} {count}" for name, count in counts["dropped"].items() if count)
    lines = [
        "# Human feedback",
        "",
        f"Criterion: {found.criterion or 'none named'}. {counts['rankings']} rankings, {counts['thumbs']} thumbs, "
        f"{len(rejected)} rows rejected" + (f"; left out: {dropped}" if dropped else "") + ".",
        f"Pairs: {pairs}.",
    ]
    if found.annotators:
        lines += [
            "",
            f"Krippendorff's alpha of all annotators: {_number(found.alpha)} (1: full agreement, 0: chance).",
            "",
            "| annotator | alpha against the others' majority | equal judgements | pairs | ties | |",
            "|---|---:|---:|---:|---:|---|",
        ]
        for name, metrics in found.annotators.items():
            cells = [_number(metrics["alpha"]), _share(metrics["agreement"]), f"{metrics['pairs']:.0f}"]
            flag = "flagged" if name in found.flagged else ""
            lines.append(f"| {name} | {' | '.join(cells)} | {_share(metrics['ties'])} | {flag} |")
    if rejected:
        lines += ["", "Rejected:", "", *(f"- {row}" for row in rejected[:LISTED])]
        if len(rejected) > LISTED:
            lines.append(f"- and {len(rejected) - LISTED} more")
    return "\n".join(lines) + "\n"


def rejected_table(rejected: Sequence[Rejected]) -> dict[str, list]:
    """The rejected rows by column: file, line, reason, detail."""
    return {name: [getattr(row, name) for row in rejected] for name in ("file", "line", "reason", "detail")}


def agreement_bars(found: Feedback, below: float) -> Figure:
    """Each annotator's alpha, the threshold as a line, flagged annotators in another colour and marked."""
    names = list(found.annotators)
    alphas = [found.annotators[name]["alpha"] for name in names]
    figure = Figure(figsize=(6, 1.4 + 0.3 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    colors = ["tab:orange" if name in found.flagged else "tab:blue" for name in names]
    axes.barh(np.arange(len(names)), [0.0 if a is None else a for a in alphas], color=colors)
    axes.set_yticks(np.arange(len(names)), [f"{name} (flagged)" if name in found.flagged else name for name in names])
    axes.invert_yaxis()
    axes.axvline(below, color="tab:red", linestyle="--", linewidth=1, label=f"flagged below {below:g}")
    if found.alpha is not None:
        axes.axvline(found.alpha, color="black", linewidth=1, label=f"all annotators: {found.alpha:.2f}")
    axes.set_xlim(min([0.0, below, *(a for a in alphas if a is not None)]) - 0.02, 1)
    axes.set_xlabel("Krippendorff's alpha against the others' majority")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
