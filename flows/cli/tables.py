"""Tables that the commands print."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any

Record = dict[str, Any]


def row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The cells side by side, each wrapped to its width."""
    wrapped = zip_longest(*map(wrap, cells, widths), fillvalue="")
    lines = ("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)) for line in wrapped)
    return "\n".join(line.rstrip() for line in lines)


def report_page(record: Record, run_dir: Path) -> Path:
    """Path of the run's evaluation report."""
    return run_dir.joinpath("work", str(record["mlflow_run_id"]), "evaluation", "report.html")


def run_table(record: Record) -> str:
    """The record's headline metrics as aligned lines of text."""

    def number(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else format(value, form)

    def change(metric: Record) -> str:
        interval = f", 95% [{', '.join(f'{end:+.3f}' for end in metric['ci95'])}]" if metric["ci95"] else ""
        return f"delta {number(metric['delta'], '+.3f')}{interval}"

    reward, perplexity, model = record["reward"], record["perplexity"] or {}, record["model"] or {}
    low, high = reward["ci95"]
    promoted = "champion" if model.get("promoted") else "challenger"
    rows = [
        ("", "before", "after", ""),
        (
            "reward",
            number(reward["reference"]),
            number(reward["policy"]),
            f"delta {number(reward['delta'], '+.3f')}, 95% [{number(low, '+.3f')}, {number(high, '+.3f')}], "
            f"wins {number(reward['win_rate'], '.0%')}",
        ),
        ("perplexity", number(perplexity.get("reference"), ".2f"), number(perplexity.get("policy"), ".2f"), ""),
        (
            "distinct-2",
            number(record["diversity"]["distinct_2_reference"]),
            number(record["diversity"]["distinct_2_policy"]),
            "",
        ),
        *(
            (name, number(own["reference"]), number(own["policy"]), change(own))
            for name, own in (record.get("metrics") or {}).items()
        ),
        ("KL", "", number(record["ppo"]["kl"], ".2f"), "nats per response"),
        (
            "reward model",
            "",
            number(record["reward_model"]["accuracy"]),
            "held-out accuracy" if record["reward_model"]["accuracy"] is not None else "no held-out pairs or labels",
        ),
        ("registered", "", "", f"{model['name']} version {model['version']} ({promoted})" if model else "-"),
    ]
    width = max(14, *(len(name) + 2 for name, *_ in rows))
    return "\n".join(f"{name:<{width}}{before:>10}{after:>10}  {note}".rstrip() for name, before, after, note in rows)


def comparison_table(record: Record) -> str:
    """The record of `compare` as aligned lines of text, with the matrix of win rates."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    models = record["models"]
    width = max(16, *(len(model["name"]) for model in models))
    head = f"{'reward':>9}  {'gain, 95% interval':<28}{'wins':>5}{'perplexity':>12}{'KL':>8}{'distinct-2':>12}"
    lines = [" " * width + head]
    for model in models:
        gain = "-"
        if model["ci95"]:
            low, high = model["ci95"]
            gain = f"{model['delta']:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append(
            f"{model['name']:<{width}}{model['reward']:>9.3f}  {gain:<28}{number(model['win_rate'], '.0%'):>5}"
            f"{number(model['perplexity'], '.2f'):>12}{number(model['kl'], '.2f'):>8}{model['distinct_2']:>12.3f}"
        )
    lines += [
        f"Gains and wins against {models[0]['name']}, on {record['prompts']} prompts of {record['recipe']}; KL to "
        f"{record['kl_to']}, nats per response.",
        "",
        "row beats column".ljust(width) + "".join(f"  {model['name']}" for model in models),
    ]
    for model, row in zip(models, record["win_rates"], strict=True):
        shares = zip(models, row, strict=True)
        cells = (f"  {number(share, '.0%'):>{len(other['name'])}}" for other, share in shares)
        lines.append(model["name"].ljust(width) + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)
