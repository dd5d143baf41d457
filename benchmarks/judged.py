"""A plot of how far to trust a reward: its gain, and that of a judge that nothing optimised, over the distance from the
reference.

    python benchmarks/judged.py OUT.png --judge held_out NAME=SUMMARY.json[,SUMMARY.json ...] ...

The summaries are those of `rlhf run ... --summary`. A run with `ppo.eval_every` is drawn as it went, on the prompts of
these evaluations; of others the end alone, and several under one name are joined by a line. Best-of-n from the
reference is drawn too, as the first summary with baselines has it, with n beside its points. The distance is the square
root of the KL in nats, as in Gao et al. 2022, "Scaling laws for reward model overoptimization".
"""

import argparse
import json
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

COLOURS = ("#d9622b", "#2f6db3", "#1d7f4e", "#8a4fa3")
Interval = tuple[float, float] | None


class Point(NamedTuple):
    """What a model gained over the reference, with its 95% interval, `distance` from it."""

    distance: float
    reward: float
    reward_ci95: Interval
    judge: float
    judge_ci95: Interval
    label: str = ""


def of_run(record: dict[str, Any], judge: str) -> Point:
    """The policy of a run; a KL below 0 counts as 0."""
    gained, judged = record["reward"], record["judges"][judge]
    kl = max(record["ppo"]["kl"], 0.0)
    return Point(sqrt(kl), gained["delta"], gained["ci95"], judged["delta"], judged["ci95"])


def course(record: dict[str, Any], judge: str) -> list[Point]:
    """The policy during a run, by what it gained on its start; empty without evaluations in it."""
    seen = record.get("course") or []
    reward, judged = "eval/mean_scores", f"eval/judge/{judge}"
    return [
        Point(sqrt(max(at["eval/kl"], 0.0)), at[reward] - seen[0][reward], None, at[judged] - seen[0][judged], None)
        for at in seen
    ]


def best_of(record: dict[str, Any], judge: str) -> list[Point]:
    """Best of 1, 2, 4, ... from the reference, by what it gains over best of 1; empty without baselines. The KL is the
    bound log n - (n - 1) / n."""
    found = {int(name[8:]): value for name, value in (record["baselines"] or {}).items() if name.startswith("best_of_")}
    return [
        Point(
            sqrt(value["kl"]),
            value["reward"] - found[1]["reward"],
            None,
            value["judges"][judge] - found[1]["judges"][judge],
            None,
            str(n),
        )
        for n, value in sorted(found.items())
    ]


def draw(lines: dict[str, list[Point]], judge: str) -> Figure:
    """Two panels, the reward's and the judge's; a line for each name."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, what, title in ((left, "reward", "reward, which PPO optimised"), (right, "judge", f"judge {judge}")):
        for (name, points), colour in zip(lines.items(), COLOURS, strict=False):
            points = sorted(points)
            x, y = [point.distance for point in points], [getattr(point, what) for point in points]
            axes.plot(x, y, marker="o", markersize=4, linewidth=1.4, color=colour, label=name)
            for point, value in zip(points, y, strict=True):
                if (interval := getattr(point, f"{what}_ci95")) is not None:
                    axes.plot([point.distance] * 2, interval, color=colour, linewidth=0.8)
                axes.annotate(
                    point.label, (point.distance, value), textcoords="offset points", xytext=(3, 4), fontsize=8
                )
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_xlabel("square root of the KL to the reference, nats")
        axes.set_ylabel("gain over the reference")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=SUMMARY.json,...")
    parser.add_argument("--judge", required=True, help="its name in evaluation.judges")
    args = parser.parse_args()
    named = {
        name: [json.loads(Path(file).read_text()) for file in files.split(",")]
        for name, _, files in (run.partition("=") for run in args.runs)
    }
    lines = {
        name: [point for record in records for point in course(record, args.judge) or [of_run(record, args.judge)]]
        for name, records in named.items()
    }
    for record in (record for records in named.values() for record in records):
        if best := best_of(record, args.judge):
            lines["best of n"] = best
            break
    draw(lines, args.judge).savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
