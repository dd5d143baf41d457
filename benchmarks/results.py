"""A run's tables and plots for docs/results: figures, before and after, probes, words that moved, training curves.

    python benchmarks/results.py OUT_FOLDER NAME=SUMMARY.json [NAME=SUMMARY.json ...] --run-dir runs
        [--rescore MODEL --label POSITIVE]

The summaries are those of `rlhf run ... --summary`. Writes OUT_FOLDER/NAME.md for each run, OUT_FOLDER/curves.png with
all of them together, and with --rescore the mean logit of one label, and its 95% interval, over every run's responses
and the reference's. Samples are drawn with a fixed seed from the evaluation's table, not chosen.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import mlflow
from matplotlib.figure import Figure

from rlhf_lib.evaluation.measures import shifts
from rlhf_lib.evaluation.page import markdown_cell, number
from rlhf_lib.statistics import bootstrap_mean

PANELS = {
    "mean score": "ppo/mean_scores",
    "loss": "ppo/loss/total",
    "KL to the reference, nats per response": "objective/kl",
    "entropy, nats per token": "ppo/policy/entropy",
}
COLOURS = ("#d9622b", "#2f6db3", "#1d7f4e", "#8a4fa3")


class Run:
    """A pipeline run as MLflow has it."""

    def __init__(self, name: str, summary: Path) -> None:
        self.name, self.record = name, json.loads(summary.read_text())
        children = mlflow.search_runs(
            search_all_experiments=True,
            filter_string=f"tags.mlflow.parentRunId = '{self.record['mlflow_run_id']}'",
            output_format="list",
        )
        self.stages: dict[str, Any] = {child.data.tags["stage"]: child for child in children}
        evaluation = self.stages["evaluation"].info
        table = mlflow.artifacts.load_dict(f"{evaluation.artifact_uri}/before_after.json")
        self.table = {column: [row[i] for row in table["data"]] for i, column in enumerate(table["columns"])}
        listed = [artifact.path for artifact in mlflow.MlflowClient().list_artifacts(evaluation.run_id)]
        self.probes = []
        if "probes.json" in listed:
            self.probes = mlflow.artifacts.load_dict(f"{evaluation.artifact_uri}/probes.json")["probes"]

    def history(self, metric: str) -> list[float]:
        points = mlflow.MlflowClient().get_metric_history(self.stages["ppo"].info.run_id, metric)
        return [point.value for point in sorted(points, key=lambda point: point.step)]


def page(run: Run, samples: int) -> str:
    record = run.record
    reward, perplexity, diversity = record["reward"], record["perplexity"], record["diversity"]
    interval = "no interval"
    if reward["ci95"]:
        low, high = reward["ci95"]
        interval = f"95% interval {number(low, True)} to {number(high, True)}"
    lines = [
        f"# {run.name}",
        "",
        f"PPO: {record['ppo']['steps']} steps in {record['ppo']['seconds']:.0f} s.",
        "",
        "| | before | after | |",
        "|---|---:|---:|---|",
        f"| reward, raw score | {number(reward['reference'])} | {number(reward['policy'])} | "
        f"{number(reward['delta'], True)}, {interval}; better on "
        f"{reward['win_rate']:.0%} of {len(run.table['query'])} held-out prompts |",
    ]
    if perplexity:
        lines += [
            f"| perplexity, by token | {number(perplexity['reference'])} | {number(perplexity['policy'])} | |",
            f"| perplexity, mean of texts | {number(perplexity['mean_per_text_reference'])} | "
            f"{number(perplexity['mean_per_text_policy'])} | |",
        ]
    if answers := record.get("answer_perplexity"):
        lines.append(f"| perplexity of answers | {number(answers['reference'])} | {number(answers['policy'])} | |")
    lines += [
        f"| distinct-2 | {number(diversity['distinct_2_reference'])} | {number(diversity['distinct_2_policy'])} | |",
        f"| KL to the reference | | {number(record['ppo']['kl'])} | nats per response |",
    ]
    if record["reward_model"]["accuracy"] is not None:
        lines.append(f"| reward model, held-out accuracy | | {number(record['reward_model']['accuracy'])} | |")
    if run.probes:
        lines += ["", "| next token after | logit difference | before | after |", "|---|---|---:|---:|"]
        lines += [
            f"| {markdown_cell(p['prompt'])} | {p['token'].strip()} - {p['against'].strip()} | "
            f"{number(p['reference'], True)} | {number(p['policy'], True)} |"
            for p in run.probes
        ]
    moved = shifts(run.table["response_before"], run.table["response_after"])
    if moved:
        lines += ["", "Words that moved (occurrences before and after):", ""]
        for title, sign in (("more", 1), ("less", -1)):
            words = [f"*{markdown_cell(s.word)}* {s.before} to {s.after}" for s in moved if s.z * sign > 0]
            lines += [f"- {title}: {', '.join(words) or 'none'}"]
    lines += ["", "| query | before | score | after | score |", "|---|---|---:|---|---:|"]
    for row in sorted(random.Random(0).sample(range(len(run.table["query"])), samples)):
        cell = {column: values[row] for column, values in run.table.items()}
        query = cell["query"] if len(cell["query"]) <= 200 else "... " + cell["query"][-200:]
        lines.append(
            f"| {markdown_cell(query)} | {markdown_cell(cell['response_before'])} | {number(cell['score_before'])} | "
            f"{markdown_cell(cell['response_after'])} | {number(cell['score_after'])} |"
        )
    return "\n".join(lines) + "\n"


def curves(runs: list[Run]) -> Figure:
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, (title, metric) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for run, colour in zip(runs, COLOURS, strict=False):
            values = run.history(metric)
            axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.4, label=run.name)
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_xlabel("PPO step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(runs), frameon=False)
    return figure


def rescored(runs: list[Run], model: str, label: str) -> str:
    """Mean logit of the label over the reference's and every run's responses to the same prompts."""
    from rlhf_lib.models.loading import load_classifier, load_tokenizer
    from rlhf_lib.rewards.classifier import ClassifierReward

    score = ClassifierReward(load_classifier(model), load_tokenizer(model, need_eos=False), label=label)
    shared = set.intersection(*(set(run.table["query"]) for run in runs))
    rows = {"reference": (runs[0], "response_before")} | {run.name: (run, "response_after") for run in runs}
    lines = [f"| policy | mean {label} logit | 95% interval |", "|---|---:|---|"]
    for name, (run, column) in rows.items():
        kept = [i for i, query in enumerate(run.table["query"]) if query in shared]
        scores = score([run.table["query"][i] for i in kept], [run.table[column][i] for i in kept])
        mean, low, high = bootstrap_mean(scores)
        lines.append(f"| {name} | {number(mean, True)} | {number(low, True)} to {number(high, True)} |")
    return "\n".join([*lines, "", f"On the {len(shared)} held-out prompts that they share.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=SUMMARY.json")
    parser.add_argument("--run-dir", type=Path, default=Path("runs"))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rescore", metavar="MODEL")
    parser.add_argument("--label", default="POSITIVE")
    args = parser.parse_args()
    mlflow.set_tracking_uri(f"sqlite:///{args.run_dir.absolute()}/mlflow.db")
    runs = [Run(name, Path(file)) for name, _, file in (given.partition("=") for given in args.runs)]
    args.out.mkdir(parents=True, exist_ok=True)
    for run in runs:
        (args.out / f"{run.name}.md").write_text(page(run, args.samples))
    curves(runs).savefig(args.out / "curves.png", dpi=110)
    if args.rescore:
        (args.out / "order.md").write_text(rescored(runs, args.rescore, args.label))
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
