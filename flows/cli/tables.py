"""Tables that the commands print."""

from __future__ import annotations

import os
import shutil
import sys
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
    learned, answers = record["reward_model"], record.get("answer_perplexity")
    accuracy = "no held-out pairs or labels"
    if learned["accuracy"] is not None:
        accuracy = f"held-out accuracy, {_interval(learned['ci95'], learned['held_out'], '.3f', 'example')}"
    promoted = "champion" if model.get("promoted") else "challenger"
    unheld = _unheld(record.get("evaluation") or {"held_out": True})
    warned = [warning["kind"] for warning in record.get("warnings") or []]
    rows = [
        ("", "before", "after", ""),
        (
            "reward",
            number(reward["reference"]),
            number(reward["policy"]),
            f"delta {number(reward['delta'], '+.3f')}, wins {number(reward['win_rate'], '.0%')}, "
            f"{_interval(reward['ci95'], reward['prompts'], '+.3f', 'prompt')}",
        ),
        *(
            (
                f"judge {name}",
                number(judged["reference"]),
                number(judged["policy"]),
                f"failed: {judged['failed']}"
                if judged.get("failed")
                else f"delta {number(judged['delta'], '+.3f')}, wins {number(judged['win_rate'], '.0%')}, "
                f"{_interval(judged['ci95'], judged['prompts'], '+.3f', 'prompt')}"
                + "; only reports"
                * (judged["only_reports"] is not None),
            )
            for name, judged in (record.get("judges") or {}).items()
        ),
        ("perplexity", number(perplexity.get("reference"), ".2f"), number(perplexity.get("policy"), ".2f"), ""),
        *(
            [("of answers", number(answers["reference"], ".2f"), number(answers["policy"], ".2f"), "perplexity")]
            if answers
            else []
        ),
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
        *(
            (
                name,
                number(found["reference"]),
                number(found["policy"]),
                f"{found['metric']}, delta {number(found['delta'], '+.3f')}, "
                f"{_interval(found['ci95'], found['documents'], '+.3f', 'document')}",
            )
            for name, found in (record.get("lm_eval") or {}).items()
        ),
        ("KL", "", number(record["ppo"]["kl"], ".2f"), "nats per response"),
        *_baseline_rows(record.get("baselines") or {}),
        ("reward model", "", number(learned["accuracy"]), accuracy),
        *([("evaluated on", "", "", unheld)] if unheld else []),
        *([("PPO's warnings", "", "", f"{', '.join(warned)}; see the report")] if warned else []),
        ("registered", "", "", f"{model['name']} version {model['version']} ({promoted})" if model else "-"),
    ]
    told = record.get("stages", {}).get("registration", {}).get("about", "")
    if told.startswith("challenger: "):
        rows.append(("not promoted", "", "", told.removeprefix("challenger: ")))
    width = max(14, *(len(name) + 2 for name, *_ in rows))
    return "\n".join(f"{name:<{width}}{before:>10}{after:>10}  {note}".rstrip() for name, before, after, note in rows)


def _baseline_rows(found: Record) -> list[tuple[str, str, str, str]]:
    """What cheaper methods than PPO get by the same reward."""
    sizes = sorted(int(name.removeprefix("best_of_")) for name in found if name.startswith("best_of_"))
    wanted = [f"best_of_{n}" for n in sizes if n == 4 or n == sizes[-1]] + ["sft_on_chosen"]
    rows = []
    for name in (name for name in wanted if name in found):
        told, best = found[name], name.startswith("best_of_")
        kl = "" if told["kl"] is None else f"KL {'<= ' if best else ''}{told['kl']:.2f}, "
        note = f"{'of the reference, ' if best else ''}{kl}{_interval(told['ci95'], told['prompts'], '.3f', 'prompt')}"
        for judge, mean in told["judges"].items():
            ci95 = told["judges_ci95"].get(judge)
            note += f"; {judge} {mean:.3f}" + (f" [{ci95[0]:.3f}, {ci95[1]:.3f}]" if ci95 else "")
            if (lead := told["judges_lead"].get(judge)) and lead["ci95"]:
                note += f", PPO {lead['delta']:+.3f} [{lead['ci95'][0]:+.3f}, {lead['ci95'][1]:+.3f}]"
        rows.append((name.replace("_", " ").replace("sft", "SFT"), "", f"{told['reward']:.3f}", note))
    return rows


def stages_table(record: Record) -> str:
    """What a run that stopped early has made, and where it lies."""
    rows = [("stage", "", "where"), *((name, s["about"], s["made"] or "-") for name, s in record["stages"].items())]
    width = max(len(about) for _, about, _ in rows)
    lines = [f"{name:<15}{about:<{width}}  {made}".rstrip() for name, about, made in rows]
    told = f"Stopped after {record['until']}, as asked. Run the same command without --until to go on from here."
    return "\n".join([*lines, "", told])


def _unheld(evaluated: Record) -> str:
    """A note for an evaluation on training prompts; empty for any other."""
    from rlhf_lib.statistics import counted

    if evaluated["held_out"]:
        return ""
    prompts = counted(evaluated["distinct_prompts"], "training prompt")
    return f"{prompts}, {counted(evaluated['prompts'], 'answer')}: no prompts are held out"


def _interval(ci95: Sequence[float] | None, count: int, form: str, what: str) -> str:
    """`95% [+0.1, +0.2], 256 prompts`, or why there is no interval."""
    from rlhf_lib.statistics import counted, no_interval

    if ci95 is None:
        return no_interval(count, what)
    return f"95% [{ci95[0]:{form}}, {ci95[1]:{form}}], {counted(count, what)}"


def next_commands(record: Record) -> str:
    """What to type next, and what it does; where `rlhf` isn't a command of the shell, first how to make it one."""
    model, beside = record["model"], Path(sys.prefix, "bin", "rlhf")
    rows = []
    if model:
        name = model["name"] if model["promoted"] else f"{model['name']}/{model['version']}"
        rows = [(f"rlhf chat {name}", "talk to it here"), (f"rlhf serve {name}", "let it answer over HTTP")]
    if beside.exists() and shutil.which("rlhf") != str(beside):
        folder = os.path.relpath(sys.prefix)
        rows.insert(
            0,
            (
                f". {sys.prefix if folder.startswith('..') else folder}/bin/activate",
                "in this and every new shell, for the commands below",
            ),
        )
    width = max((len(command) for command, _ in rows), default=0)
    return "\n".join(f"{command:<{width}}  # {about}" for command, about in rows)


def comparison_table(record: Record) -> str:
    """The record of `compare` as aligned lines of text, with the matrix of win rates."""
    from rlhf_lib.statistics import counted, no_interval

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    models = record["models"]
    width = max(16, *(len(model["name"]) for model in models))
    head = f"{'reward':>9}  {'gain, 95% interval':<28}{'wins':>5}{'perplexity':>12}{'KL':>8}{'distinct-2':>12}"
    lines = [" " * width + head]
    for model in models:
        gain = "-" if model["delta"] is None else f"{model['delta']:+.3f}"
        if model["ci95"]:
            low, high = model["ci95"]
            gain += f" [{low:+.3f}, {high:+.3f}]"
        lines.append(
            f"{model['name']:<{width}}{model['reward']:>9.3f}  {gain:<28}{number(model['win_rate'], '.0%'):>5}"
            f"{number(model['perplexity'], '.2f'):>12}{number(model['kl'], '.2f'):>8}{model['distinct_2']:>12.3f}"
        )
    for name in models[0].get("judges") or {}:
        lines += ["", f"judge {name}"]
        for model in models:
            found = model["judges"][name]
            gain = "-" if found["delta"] is None else f"{found['delta']:+.3f}"
            if found["ci95"]:
                gain += " [{:+.3f}, {:+.3f}]".format(*found["ci95"])
            lines.append(
                f"{model['name']:<{width}}{number(found['mean'], '.3f'):>9}  {gain:<28}"
                f"{number(found['win_rate'], '.0%'):>5}"
            )
        lines += dict.fromkeys(f"failed: {why}" for model in models if (why := model["judges"][name].get("failed")))
    on = f"{counted(record['prompts'], 'prompt' if record['held_out'] else 'training prompt')} of {record['recipe']}"
    if not any(model["ci95"] for model in models):
        on += f" ({no_interval(record['distinct_prompts'])})"
    lines += [
        f"Gains and wins against {models[0]['name']}, on {on}; KL to {record['kl_to']}, nats per response.",
        "",
        "row beats column".ljust(width) + "".join(f"  {model['name']}" for model in models),
    ]
    for model, row in zip(models, record["win_rates"], strict=True):
        shares = zip(models, row, strict=True)
        cells = (f"  {number(share, '.0%'):>{len(other['name'])}}" for other, share in shares)
        lines.append(model["name"].ljust(width) + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)
