"""Human feedback as files: annotation tasks, rankings of their responses, thumbs up and down.

Every row is checked by itself. A row that can't be used is kept as a `Rejected` with its file, line and reason, the
others are read on. docs/rankings.md has the schema.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lib.errors import DataError

THUMBS = {"up": True, "1": True, "true": True, "down": False, "-1": False, "false": False}
RANKING_COLUMNS = ("id", "annotator", "response", "rank")
FEEDBACK_COLUMNS = ("prompt", "response", "thumb")


@dataclass(frozen=True)
class Task:
    """A prompt and its responses, by their ids."""

    id: str
    prompt: str
    responses: dict[str, str]
    criterion: str | None = None


@dataclass(frozen=True)
class Ranking:
    """One annotator's ranks of a task's responses: 1 is best, equal ranks are a tie."""

    task: Task
    annotator: str
    ranks: dict[str, float]
    where: str  # file and line, for the messages


@dataclass(frozen=True)
class Thumb:
    prompt: str
    response: str
    up: bool
    annotator: str | None = None
    criterion: str | None = None


@dataclass(frozen=True)
class Rejected:
    """An unusable row. `reason` is one of a fixed few, which are counted; `detail` names the culprit."""

    file: str
    line: int
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}: {self.detail}"


class _Fault(Exception):
    """Why a row is unusable: (reason, detail)."""


def task_id(prompt: str, responses: Sequence[str], criterion: str | None = None) -> str:
    """16 hex digits of the task's content: the same task has the same id everywhere and in every round."""
    return hashlib.sha256(json.dumps([prompt, list(responses), criterion]).encode()).hexdigest()[:16]


def read_tasks(files: Sequence[str]) -> tuple[dict[str, Task], list[Rejected]]:
    """Tasks by id, of JSONL files; a task that several files hold counts once.

    Raises DataError for a file that is missing or of another kind, and where no task is left.
    """
    tasks: dict[str, Task] = {}
    rejected: list[Rejected] = []
    for file in files:
        for line, row in _rows(file, "tasks", (".jsonl", ".ndjson")):
            try:
                task = _task(_checked(row))
                if tasks.setdefault(task.id, task) != task:
                    raise _Fault("repeated id", f"task {task.id} stands for other responses further up")
            except _Fault as fault:
                rejected.append(Rejected(file, line, *fault.args))
    _require(tasks, files, rejected, "task")
    return tasks, rejected


def read_rankings(files: Sequence[str], tasks: dict[str, Task]) -> tuple[list[Ranking], list[Rejected]]:
    """Rankings of JSONL and CSV files, each whole: a row that lacks a response or names an unknown one is rejected, and
    so is an annotator's second ranking of a task.

    Raises DataError for a file that is missing, of another kind or without the columns, and where none is left.
    """
    found: dict[tuple[str, str], Ranking] = {}
    rejected: list[Rejected] = []
    for file in files:
        read = _csv_rankings if _suffix(file) == ".csv" else _jsonl_rankings
        for line, result in read(file, tasks):
            if isinstance(result, Ranking):
                first = found.setdefault((result.task.id, result.annotator), result)
                if first is result:
                    continue
                result = _Fault(
                    "annotator twice",
                    f"{result.annotator} ranked task {result.task.id} in {first.where} already, which stands",
                )
            rejected.append(Rejected(file, line, *result.args))
    _require(found, files, rejected, "ranking")
    return list(found.values()), rejected


def read_feedback(files: Sequence[str]) -> tuple[list[Thumb], list[Rejected]]:
    """Thumbs of JSONL and CSV files (prompt, response, thumb, and perhaps annotator and criterion).

    Raises DataError as `read_rankings` does.
    """
    thumbs: list[Thumb] = []
    rejected: list[Rejected] = []
    first: dict[tuple[str, str, str, str | None], str] = {}
    for file in files:
        for line, row in _rows(file, "feedback", (".jsonl", ".ndjson", ".csv"), FEEDBACK_COLUMNS):
            try:
                thumb = _thumb(_checked(row))
                if thumb.annotator is not None:
                    key = (thumb.annotator, thumb.prompt, thumb.response.strip(), thumb.criterion)
                    before = first.setdefault(key, f"{file}, line {line}")
                    if before != f"{file}, line {line}":
                        raise _Fault("annotator twice", f"{thumb.annotator} judged it in {before} already")
                thumbs.append(thumb)
            except _Fault as fault:
                rejected.append(Rejected(file, line, *fault.args))
    _require(thumbs, files, rejected, "thumb")
    return thumbs, rejected


def content(files: Sequence[str], key: str) -> str:
    """sha256 over the files' bytes, in order. Raises DataError for a missing file."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(_opened(file, key)).digest())
    return digest.hexdigest()


def _require(found: Any, files: Sequence[str], rejected: list[Rejected], what: str) -> None:
    if not found:
        examples = "; ".join(map(str, rejected[:3])) or "they are empty"
        raise DataError(f"no {what} of {', '.join(files)} can be used ({len(rejected)} rejected). {examples}")


def _task(row: dict[str, Any]) -> Task:
    prompt, listed = _text(row, "prompt"), row.get("responses")
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise _Fault("malformed", 'responses must be a list of {"id": ..., "text": ...}')
    names = [_text(item, "id") for item in listed]
    texts = [item.get("text") for item in listed]
    if not all(isinstance(text, str) for text in texts):
        raise _Fault("malformed", "every response needs a text")
    if len(set(names)) < len(names):
        raise _Fault("repeated response id", ", ".join(sorted({name for name in names if names.count(name) > 1})))
    if len(names) < 2:
        raise _Fault("too few responses", f"{len(names)}: there is nothing to rank")
    return Task(_text(row, "id"), prompt, dict(zip(names, texts, strict=True)), _optional(row, "criterion"))


def _jsonl_rankings(file: str, tasks: dict[str, Task]) -> Iterator[tuple[int, Ranking | _Fault]]:
    for line, row in _rows(file, "rankings", (".jsonl", ".ndjson", ".csv")):
        try:
            row = _checked(row)
            task, annotator = _known(row, tasks), _text(row, "annotator")
            ranks = row.get("ranks")
            if isinstance(ranks, list) and all(isinstance(item, tuple) for item in ranks):
                pass  # as _pairs keeps them
            elif isinstance(tiers := row.get("ranking"), list):
                groups = [tier if isinstance(tier, list) else [tier] for tier in tiers]
                ranks = [(name, place) for place, tier in enumerate(groups, 1) for name in map(str, tier)]
            else:
                raise _Fault("missing field", 'neither ranks {"a": 1, ...} nor ranking [["a"], ...]')
            yield line, Ranking(task, annotator, _ranks(ranks, task), f"{file}, line {line}")
        except _Fault as fault:
            yield line, fault


def _csv_rankings(file: str, tasks: dict[str, Task]) -> Iterator[tuple[int, Ranking | _Fault]]:
    """One row per response. An annotator's rows for one task are one ranking, wherever they are; if all the responses
    come again, that is a second ranking."""
    groups: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    for line, row in _rows(file, "rankings", (".csv",), RANKING_COLUMNS):
        if isinstance(row, _Fault):
            yield line, row
        else:
            groups.setdefault((row["id"], row["annotator"]), []).append((line, row))
    for rows in groups.values():
        for block in _blocks(rows, tasks):
            line, row = block[0]
            try:
                task, annotator = _known(row, tasks), _text(row, "annotator")
                given: list[tuple[str, Any]] = []
                for number, row in block:
                    line = number
                    given.append((row["response"], row["rank"]))
                    _ranks(given, task, whole=False)
                line = block[0][0]
                yield line, Ranking(task, annotator, _ranks(given, task), f"{file}, line {line}")
            except _Fault as fault:  # `line` is the one at fault
                reason, detail = fault.args
                lines = ", ".join(str(number) for number, _ in block)
                yield line, _Fault(reason, f"{detail} (its lines: {lines})")


def _blocks(
    rows: list[tuple[int, dict[str, Any]]], tasks: dict[str, Task]
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """The rows of an annotator's rankings of one task, split into several rankings only if each of them is complete."""
    task = tasks.get(rows[0][1]["id"])
    size = len(task.responses) if task else len(rows)
    blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
    whole = task is not None and all({row["response"] for _, row in block} == set(task.responses) for block in blocks)
    yield from blocks if whole else [rows]


def _known(row: dict[str, Any], tasks: dict[str, Task]) -> Task:
    name = _text(row, "id")
    if name not in tasks:
        raise _Fault("unknown id", f"no task has the id {name}")
    return tasks[name]


def _ranks(given: Sequence[tuple[Any, Any]], task: Task, *, whole: bool = True) -> dict[str, float]:
    ranks: dict[str, float] = {}
    for name, rank in given:
        if not isinstance(name, str) or name not in task.responses:
            raise _Fault(
                "unknown response", f"task {task.id} has no response {name!r}, but {', '.join(task.responses)}"
            )
        if name in ranks:
            raise _Fault("duplicate ranks", f"response {name} of task {task.id} has more than one rank")
        if rank is None or rank == "":
            raise _Fault("missing responses", f"response {name} of task {task.id} has no rank")
        try:
            ranks[name] = math.nan if isinstance(rank, bool) else float(rank)
        except (TypeError, ValueError):
            ranks[name] = math.nan
        if not math.isfinite(ranks[name]):
            raise _Fault("bad rank", f"response {name} of task {task.id} has the rank {rank!r}, not a number")
    missing = [name for name in task.responses if name not in ranks]
    if whole and missing:
        raise _Fault("missing responses", f"task {task.id}: no rank for {', '.join(missing)}")
    return ranks


def _thumb(row: dict[str, Any]) -> Thumb:
    prompt, response = _text(row, "prompt"), _text(row, "response")
    thumb = row.get("thumb")
    up = THUMBS.get(str(thumb).strip().lower()) if not isinstance(thumb, float) else None
    if up is None:
        raise _Fault("bad thumb", f"{thumb!r} is none of {', '.join(THUMBS)}")
    return Thumb(prompt, response, up, _optional(row, "annotator"), _optional(row, "criterion"))


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # ids and annotators may be numbers
    if not isinstance(value, str) or not value.strip():
        raise _Fault("missing field", f"{key} is {value!r}, not a text")
    return value if key in ("prompt", "response") else value.strip()


def _optional(row: dict[str, Any], key: str) -> str | None:
    return None if row.get(key) in (None, "") else _text(row, key)


def _checked(row: dict[str, Any] | _Fault) -> dict[str, Any]:
    if isinstance(row, _Fault):
        raise row
    return row


def _rows(
    file: str, key: str, kinds: tuple[str, ...], columns: tuple[str, ...] = ()
) -> Iterator[tuple[int, dict[str, Any] | _Fault]]:
    """(line, row) of a file; lines count from 1, and a CSV row that spans several has the number of its first."""
    if _suffix(file) not in kinds:
        raise DataError(f"data.preferences.rankings.{key}: {file} has an unknown format (known: {', '.join(kinds)})")
    try:
        text = _opened(file, key).decode("utf-8-sig")  # spreadsheets put a mark in front
    except UnicodeDecodeError as error:
        raise DataError(f"data.preferences.rankings.{key}: {file} is not UTF-8 ({error}): save it as UTF-8") from None
    yield from _csv_rows(file, key, text, columns) if _suffix(file) == ".csv" else _jsonl_rows(text)


def _jsonl_rows(text: str) -> Iterator[tuple[int, dict[str, Any] | _Fault]]:
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        try:
            row = json.loads(written, object_pairs_hook=_pairs)
        except ValueError as error:
            yield line, _Fault("malformed", f"is no JSON ({error})")
            continue
        yield line, row if isinstance(row, dict) else _Fault("malformed", "is no JSON object")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object with its `ranks` as pairs, since a dict would hide a response that is named twice."""
    keys = [key for key, _ in pairs]
    row: dict[str, Any] = _Ranks(pairs) if len(set(keys)) < len(keys) else dict(pairs)
    if isinstance(row.get("ranks"), dict):
        ranks = row["ranks"]
        row["ranks"] = ranks.pairs if isinstance(ranks, _Ranks) else list(ranks.items())
    return row


class _Ranks(dict):
    """An object in which a key occurs twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _csv_rows(
    file: str, key: str, text: str, columns: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, Any] | _Fault]]:
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in header and "," not in header else ",")
    try:
        names = [name.strip() for name in next(reader)]
    except StopIteration:
        names = []
    missing = [column for column in columns if column not in names]
    if missing:
        raise DataError(
            f"data.preferences.rankings.{key}: column {missing[0]} not found in {file} (available: "
            f"{', '.join(names) or 'none'}; expected: {', '.join(columns)})"
        )
    line = reader.line_num + 1
    for cells in reader:
        first, line = line, reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            yield first, _Fault("malformed", f"has {len(cells)} cells, the header has {len(names)}")
            continue
        row = dict(zip(names, cells, strict=True))
        yield first, {name: cell if name == "prompt" else cell.strip() for name, cell in row.items()}


def _suffix(file: str) -> str:
    return Path(file).suffix.lower()


def _opened(file: str, key: str) -> bytes:
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"data.preferences.rankings.{key}: {file} can't be read ({error.strerror})") from None
