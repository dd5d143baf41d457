"""What a run's data lost on the way to training, and what training and evaluation share: a line each, for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# what each filter's name in a report means; those of LIMITS are asked for and lose nothing unforeseen
REASONS = {
    "min_chars": "too short (data.prompts.min_chars)",
    "max_query_chars": "too long (data.prompts.max_query_chars)",
    "query too long": "too long (data.prompts.max_query_chars)",
    "empty": "empty",
    "duplicate": "repeated",
    "in test": "also in the evaluation or test rows",
    "near duplicate": "nearly evaluation prompts",
    "in train": "also training prompts",
    "too long": "without room for the response",
    "tie": "ties",
    "no prompt": "without a prompt",
    "no single answer": "whose answer isn't one message of the assistant's",
    "prompts differ": "whose two prompts differ",
    "empty answer": "with an empty answer",
    "identical answers": "with the same chosen and rejected answer",
    "repeated pair": "repeated",
    "prompt in test": "whose prompt is also a test pair's",
    "prompt in training": "whose prompt is also a training pair's",
    "no label": "without a label",
    "no text after the query": "with nothing after the query",
    "limit": "above the limit",
}
NEAR = "near duplicate"
LIMITS = ("limit", "held out")
# harmless to drop, or asked for in the recipe: worth a warning only where they are most of the rows
HARMLESS = ("min_chars", "max_query_chars", "query too long", "duplicate", "repeated pair", "in train", "tie")
WORRYING = 0.1  # the share of rows lost, cut or shared above which a line is a warning
MOST = 0.5  # the same for what is harmless
SETS = {
    "prompts": {"train": "training prompts", "test": "evaluation prompts"},
    "preferences": {"train": "training pairs", "test": "test pairs", "transfer": "transfer pairs"},
    "corpus": {"train": "training texts of the base model", "test": "test texts of the base model"},
    "labelled": {"train": "training texts of the classifier", "test": "test texts of the classifier"},
}
_SHOWN = 160  # characters of an example
SHARED = "evaluation prompts in training pairs"


@dataclass(frozen=True)
class Loss:
    """One line: `count` of `rows` dropped, cut or shared. `worrying`: more than should be let pass unseen."""

    text: str
    count: int
    rows: int
    worrying: bool

    def __str__(self) -> str:
        return self.text


def data_losses(report: Mapping[str, Any]) -> list[Loss]:
    """The lines for the data stage's report: one for each set that lost rows, one for leaked evaluation prompts."""
    found: list[Loss] = []
    for kind, splits in SETS.items():
        for split, name in splits.items():
            if (funnel := report.get(kind, {}).get(split)) is not None:
                found += dropped(name, funnel["rows"], funnel["dropped"])
            if kind == "prompts" and (tokenized := report.get("tokenized", {}).get(split)) is not None:
                found += tokenized_losses(split, tokenized)
    shared = report.get(SHARED)
    if shared:
        asked = report["prompts"]["test"]["kept"]
        found.append(
            Loss(
                f"{_share(shared, asked)} evaluation prompts are in the training pairs too: a reward model trained on "
                "these has seen them",
                shared,
                asked,
                shared > WORRYING * asked,
            )
        )
    return found


def tokenized_losses(split: str, counts: Mapping[str, float]) -> list[Loss]:
    """The line for prompts that `tokenize_splits` dropped."""
    reasons = {name: int(counts.get(name, 0)) for name in ("query too long", "too long", "in train")}
    return dropped(SETS["prompts"][split], int(counts["rows"]), reasons, " once tokenized")


def dropped(name: str, rows: int, reasons: Mapping[str, int], when: str = "") -> list[Loss]:
    """One line with every reason, none where nothing was dropped unforeseen."""
    lost = {reason: count for reason, count in reasons.items() if count and reason not in LIMITS}
    total = sum(lost.values())
    if not total:
        return []
    listed = "; ".join(f"{count:,} {REASONS.get(reason, reason)}" for reason, count in lost.items())
    serious = sum(count for reason, count in lost.items() if reason not in HARMLESS)
    worrying = serious > WORRYING * rows or total > MOST * rows
    return [Loss(f"{_share(total, rows)} {name} dropped{when}: {listed}", total, rows, worrying)]


def cut(name: str, rows: float, truncated: float, setting: str) -> list[Loss]:
    """One line for texts that lost tokens on the left, none where none did."""
    if not truncated:
        return []
    return [
        Loss(
            f"{_share(int(truncated), int(rows))} {name} lost their beginning: too long for the model or for {setting}",
            int(truncated),
            int(rows),
            truncated > WORRYING * rows,
        )
    ]


def training_losses(base: Mapping[str, float], reward: Mapping[str, float]) -> list[Loss]:
    """The lines for the metrics of the base-model and the reward-model stage: texts cut, prompts dropped by the new
    tokenizer."""
    found: list[Loss] = []
    for split in ("train", "test"):
        if f"prompts/{split}/rows" in base:
            counts = {name: base.get(f"prompts/{split}/{name.replace(' ', '_')}", 0.0) for name in (*REASONS, "rows")}
            found += tokenized_losses(split, counts)
    if "rows" in base:
        found += cut("texts of the base model", base["rows"], base["truncated"], "policy.train.max_length")
    if "pairs" in reward:  # each pair has two dialogues
        found += cut(
            "dialogues of the reward model", 2 * reward["pairs"], reward["truncated"], "reward.train.max_length"
        )
    elif "rows" in reward:
        found += cut("texts of the classifier", reward["rows"], reward["truncated"], "reward.train.max_length")
    return found


def _share(count: int, rows: int) -> str:
    percent = 100 * count / max(1, rows)
    return f"{count:,} of {rows:,} ({'under 1' if percent < 1 else f'{percent:.0f}'}%)"


def table(report: Mapping[str, Any]) -> str:
    """Every set's rows, read, dropped by reason and kept, as a Markdown table."""
    lines = ["| | read | dropped | kept |", "|---|---:|---|---:|"]
    for kind, splits in SETS.items():
        for split, name in splits.items():
            funnels = [report.get(kind, {}).get(split)]
            if kind == "prompts":
                funnels.append(report.get("tokenized", {}).get(split))
            for funnel in filter(None, funnels):
                counts = funnel.get("dropped", {k: v for k, v in funnel.items() if k not in ("rows", "kept")})
                why = "; ".join(f"{count:,} {REASONS.get(reason, reason)}" for reason, count in counts.items() if count)
                label = name if "dropped" in funnel else f"{name}, as tokens"
                lines.append(f"| {label} | {funnel['rows']:,} | {why or '-'} | {funnel['kept']:,} |")
    return "\n".join([*lines, *_examples(report)])


def _examples(report: Mapping[str, Any]) -> list[str]:
    """The training prompts that were dropped for being nearly evaluation prompts, beside these."""
    found = report.get("prompts", {}).get("near duplicates", [])
    if not found:
        return []
    cells = [
        [f"{one['similarity']:.2f}", *(" ".join(one[side].split())[:_SHOWN] for side in ("train", "test"))]
        for one in found
    ]
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return ["", "| similarity | dropped training prompt | evaluation prompt |", "|---:|---|---|", *rows]
