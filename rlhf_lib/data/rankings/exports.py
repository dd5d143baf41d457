"""Rankings as other tools export them: Argilla and Label Studio, as tasks and rankings of ours.

Label Studio's JSON (or JSON-MIN) is a list of {data, annotations: [{completed_by, result}]}. A result of type `ranker`
holds the ids of a List's items in order, or by bucket; one of type `pairwise` the side that was selected. Argilla's
records are {fields, responses}: version 2 has the responses to a ranking question by its name, version 1 by annotator.
What orders the answers there are the names of their fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lib.conversation import Conversation, is_messages
from rlhf_lib.data.rankings.files import Ranking, Rejected, Task, task_id
from rlhf_lib.errors import DataError

PROMPTS = ("prompt", "instruction", "question", "context", "input", "text")  # names of fields, the likeliest first


class _Unusable(Exception):
    """Why a record can't be used: (reason, detail)."""


def read_export(file: str, criterion: str | None = None) -> tuple[list[Ranking], list[Rejected]]:
    """The rankings of an export of Argilla or Label Studio (JSON or JSONL), with their tasks.

    A record that can't be used is a `Rejected`, counted as lines are: the first is 1. Raises DataError for a file that
    is missing or none of these, and where nothing in it can be used.
    """
    records = _records(file)
    found: list[Ranking] = []
    rejected: list[Rejected] = []
    for line, record in enumerate(records, 1):
        where = f"{file}, record {line}"
        try:
            if not isinstance(record, dict):
                raise _Unusable("malformed", "is no object")
            if "annotations" in record and "data" in record:
                found += _label_studio(record, where, criterion)
            elif "fields" in record and "responses" in record:
                found += _argilla(record, where, criterion)
            else:
                raise _Unusable(
                    "malformed", "has neither data and annotations (Label Studio) nor fields and responses (Argilla)"
                )
        except _Unusable as fault:
            rejected.append(Rejected(file, line, *fault.args))
    if not found:
        examples = "; ".join(map(str, rejected[:3])) or "it holds no record"
        raise DataError(f"no ranking of {file} can be used ({len(rejected)} records rejected). {examples}")
    return found, rejected


def is_export(file: str) -> bool:
    """Whether the file's first record is Argilla's or Label Studio's. False for a file that can't be read."""
    try:
        records = _records(file)
    except DataError:
        return False
    first = records[0] if records else None
    return isinstance(first, dict) and (
        {"data", "annotations"} <= first.keys() or {"fields", "responses"} <= first.keys()
    )


def _records(file: str) -> list[Any]:
    try:
        text = Path(file).expanduser().read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8: save it as UTF-8") from None
    try:
        read = json.loads(text)
    except ValueError:
        try:
            read = [json.loads(line) for line in text.split("\n") if line.strip()]
        except ValueError as error:
            raise DataError(f"{file} is neither JSON nor JSONL ({error})") from None
    return read if isinstance(read, list) else [read]


def _label_studio(record: dict[str, Any], where: str, criterion: str | None) -> Iterator[Ranking]:
    data = record["data"]
    if not isinstance(data, Mapping) or not isinstance(record["annotations"], list):
        raise _Unusable("malformed", "data is no object, or annotations no list")
    used = 0
    for annotation in record["annotations"]:
        if not isinstance(annotation, Mapping) or annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result") or []:
            value = result.get("value") or {}
            if result.get("type") == "ranker":
                texts = _items(data)
                ranks = _tiers(_ranker(value, str(result.get("from_name"))), texts)
            elif result.get("type") == "pairwise":
                texts = _sides(data, result)
                selected = value.get("selected")
                ranks = {"left": 1.0 + (selected == "right"), "right": 1.0 + (selected == "left")}
            else:
                continue
            used += 1
            yield _ranking(_prompt(data), texts, ranks, _whose(annotation.get("completed_by")), where, criterion)
    if not used:
        raise _Unusable("missing field", "no annotation has a result of type ranker or pairwise")


def _items(data: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the List, by id: its body, or else its title."""
    for value in data.values():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) and "id" in item for item in value):
            return {
                str(item["id"]): str(item.get("body") or item.get("html") or item.get("title") or "") for item in value
            }
    raise _Unusable("missing field", "data has no list of items with ids")


def _ranker(value: Mapping[str, Any], name: str) -> list[Any]:
    """Tiers, the best first."""
    ranked = value.get("ranker")
    if isinstance(ranked, Mapping):
        if isinstance(ranked.get(name), list):
            return list(ranked[name])
        buckets = [tier for bucket, tier in ranked.items() if bucket != "_"]  # "_" is the list before it was sorted
        ranked = buckets[0] if len(buckets) == 1 else buckets
    if not isinstance(ranked, list):
        raise _Unusable("malformed", "the ranker's value is no list of ids")
    return ranked


def _sides(data: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, str]:
    """The two texts, which the exported result knows only by their tags' names: fields of those names, or the two
    fields that aren't the prompt."""
    to_name = result.get("to_name")
    names = to_name.split(",") if isinstance(to_name, str) else list(to_name or [])
    fields = [name for name in names if isinstance(data.get(name), str)]
    if len(fields) != 2:
        fields = [name for name, value in data.items() if isinstance(value, str) and name not in PROMPTS]
    if len(fields) != 2:
        raise _Unusable("missing field", f"data has {len(fields)} texts beside the prompt, a pair has two")
    return {"left": data[fields[0]], "right": data[fields[1]]}


def _argilla(record: dict[str, Any], where: str, criterion: str | None) -> Iterator[Ranking]:
    fields, responses, used = record["fields"], record["responses"], 0
    if not isinstance(fields, Mapping):
        raise _Unusable("malformed", "fields is no object")
    for who, value in _argilla_answers(responses):
        tiers = _argilla_tiers(value)
        names = [name for tier in tiers for name in tier]
        texts = {name: str(fields[name]) for name in fields if name in names}
        if missing := [name for name in names if name not in fields]:
            raise _Unusable("unknown response", f"no field is named {missing[0]!r}")
        used += 1
        yield _ranking(_prompt(fields), texts, _tiers(tiers, texts), _whose(who), where, criterion)
    if not used:
        raise _Unusable("missing field", "no submitted response ranks anything")


def _argilla_answers(responses: Any) -> Iterator[tuple[Any, list[Any]]]:
    """(annotator, value) of every submitted answer to a ranking question, of version 2 and of version 1."""
    if isinstance(responses, Mapping):
        answers = [
            (one.get("user_id"), one.get("status"), one.get("value")) for many in responses.values() for one in many
        ]
    else:
        answers = [
            (one.get("user_id"), one.get("status"), answer.get("value"))
            for one in responses or []
            for answer in (one.get("values") or {}).values()
        ]
    for who, status, value in answers:
        if status in (None, "submitted") and isinstance(value, list) and len(value) > 1:
            yield who, value


def _argilla_tiers(value: list[Any]) -> list[list[str]]:
    if not all(isinstance(item, Mapping) and "rank" in item for item in value):
        return [[str(item)] for item in value]  # version 2: the names in order
    ranks = sorted({item["rank"] for item in value if item["rank"] is not None})
    return [[str(item["value"]) for item in value if item["rank"] == rank] for rank in ranks]


def _tiers(tiers: Sequence[Any], texts: Mapping[str, str]) -> dict[str, float]:
    ranks = {
        str(name): float(place)
        for place, tier in enumerate(tiers, 1)
        for name in (tier if isinstance(tier, list) else [tier])
    }
    if unknown := [name for name in ranks if name not in texts]:
        raise _Unusable("unknown response", f"no answer has the id {unknown[0]!r}")
    return ranks


def _ranking(
    prompt: str, texts: dict[str, str], ranks: dict[str, float], who: str, where: str, criterion: str | None
) -> Ranking:
    if len(texts) < 2:
        raise _Unusable("too few responses", f"{len(texts)}: there is nothing to rank")
    if missing := [name for name in texts if name not in ranks]:
        raise _Unusable("missing responses", f"no rank for {', '.join(missing)}")
    task = Task(task_id(prompt, list(texts.values()), criterion), prompt, texts, criterion)
    return Ranking(task, who, ranks, where)


def _prompt(fields: Mapping[str, Any]) -> str:
    for name in PROMPTS:
        value = fields.get(name)
        if isinstance(value, str) and value.strip():
            return value
        if value is not None and is_messages(value):
            return str(Conversation(value))
    raise _Unusable("missing field", f"no prompt: none of {', '.join(PROMPTS)} is a text")


def _whose(who: Any) -> str:
    """An annotator's name: the e-mail address, or the id."""
    if isinstance(who, Mapping):
        who = who.get("email") or who.get("username") or who.get("id")
    return "unknown" if who is None else str(who)
