"""Rounds from files and back to files: tasks as `rlhf collect` writes them, rankings as `rlhf rankings` reads them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import joinedload, selectinload

from rlhf_lib.data.rankings import exports, files
from rlhf_lib.data.rankings.files import Ranking, Rejected
from tasks.annotation.database import Database
from tasks.annotation.models import RANKING, SKIP, Judgement, Round, Task
from tasks.annotation.store import NewTask, Said, account_named, active_judgement, judgement_of, open_round, set_closed


def read_tasks(names: Sequence[str]) -> tuple[list[NewTask], list[Rejected]]:
    """The tasks of JSONL files, with the instructions and policies that the files name; and the rows that are none.

    Raises DataError as `files.read_tasks` does.
    """
    tasks, rejected = files.read_tasks(names)
    rows = {row.get("id"): row for name in names for row in _objects(name)}
    rows = {str(key): row for key, row in rows.items()}
    found = []
    for task in tasks.values():
        row = rows.get(task.id, {})
        models = {
            str(item["id"]): str(item["policy"]) for item in row.get("responses", []) if item.get("policy") is not None
        }
        found.append(
            NewTask(
                id=task.id,
                prompt=task.prompt,
                responses=task.responses,
                criterion=task.criterion,
                instructions=_text(row.get("instructions")),
                policy=_text(row.get("policy")),
                models=models,
            )
        )
    return found, rejected


def task_rows(database: Database, of: int) -> Iterator[dict[str, Any]]:
    """The round's tasks as the lines of a task file."""
    with database.read() as session:
        for task in session.execute(select(Task).where(Task.round_id == of).order_by(Task.id)).scalars():
            responses = []
            for answer in task.answers:
                named = {"policy": answer.model} if answer.model not in (None, task.policy) else {}
                responses.append({"id": answer.key, "text": answer.text, **named})
            row = {"id": task.key, "prompt": task.prompt, "responses": responses, "criterion": task.criterion}
            row |= {"instructions": task.instructions, "policy": task.policy}
            yield {key: value for key, value in row.items() if value is not None}


def judgements(database: Database, of: int) -> list[Judgement]:
    """The round's judgements that stand, in the order in which they came, with task and account."""
    wanted = (
        select(Judgement)
        .join(Task, Judgement.task_id == Task.id)
        .where(Task.round_id == of, Judgement.undone_at.is_(None))
        .options(selectinload(Judgement.task), joinedload(Judgement.account))
        .order_by(Judgement.id)
    )
    with database.read() as session:
        return list(session.execute(wanted).scalars())


def ranking_rows(database: Database, of: int) -> Iterator[dict[str, Any]]:
    """The round's rankings as the lines of a rankings file. Beside the documented fields: `all_bad`, `comment`,
    `seconds`, the order in which the answers were `shown`, and `time` (seconds since 1970)."""
    for judgement in judgements(database, of):
        if judgement.kind == RANKING:
            yield _row(judgement, {"ranks": judgement.ranks})


def skip_rows(database: Database, of: int) -> Iterator[dict[str, Any]]:
    """What was skipped, with the reasons: not part of a rankings file."""
    for judgement in judgements(database, of):
        if judgement.kind == SKIP:
            yield _row(judgement, {"reason": judgement.reason})


def rankings(found: Sequence[Judgement]) -> list[Ranking]:
    """Judgements as rankings, for the measures of agreement; skips are none."""
    tasks: dict[int, files.Task] = {}
    made = []
    for judgement in found:
        if judgement.kind != RANKING or judgement.ranks is None:
            continue
        task = judgement.task
        texts = {answer.key: answer.text for answer in task.answers}
        known = tasks.setdefault(task.id, files.Task(task.key, task.prompt, texts, task.criterion))
        ranks = {key: float(rank) for key, rank in judgement.ranks.items()}
        made.append(Ranking(known, judgement.account.name, ranks, f"judgement {judgement.id}"))
    return made


@dataclass(frozen=True)
class Taken:
    """What of a file of rankings was taken. `known`: rankings by annotators who had judged the task already."""

    new: int
    known: int
    rejected: list[Rejected]


def bring_rankings(database: Database, of: int, names: Sequence[str]) -> Taken:
    """Add the rankings of files (JSONL or CSV) to the round, under accounts of the annotators' names: new ones can't
    log in. What an annotator has judged already stays, so that taking a file twice changes nothing.

    Raises DataError where nothing in the files can be used.
    """
    with database.read() as session:
        tasks = {
            task.key: files.Task(task.key, task.prompt, {a.key: a.text for a in task.answers}, task.criterion)
            for task in session.execute(select(Task).where(Task.round_id == of)).scalars()
        }
    found, rejected = files.read_rankings(names, tasks)
    return _bring(database, of, found, rejected)


def bring_export(database: Database, name: str, file: str, criterion: str | None = None) -> tuple[Round, Taken]:
    """A closed round of what Argilla or Label Studio exported: its tasks and rankings. Taking a file twice
    changes nothing.

    Raises DataError as `exports.read_export` does.
    """
    found, rejected = exports.read_export(file, criterion)
    tasks = {ranking.task.id: ranking.task for ranking in found}
    news = [NewTask(task.id, task.prompt, task.responses, task.criterion) for task in tasks.values()]
    of, made = open_round(database, name, news, annotators=1, handed_out=False)
    if made:
        set_closed(database, of.id, True)
    same = []
    for ranking in found:  # equal texts in another record may go by other ids
        keys = dict(zip(ranking.task.responses, tasks[ranking.task.id].responses, strict=True))
        ranks = {keys[key]: rank for key, rank in ranking.ranks.items()}
        same.append(replace(ranking, task=tasks[ranking.task.id], ranks=ranks))
    return of, _bring(database, of.id, same, rejected)


def _bring(database: Database, of: int, found: Sequence[Ranking], rejected: list[Rejected]) -> Taken:
    new = 0
    with database.write() as session:
        keyed = {task.key: task for task in session.execute(select(Task).where(Task.round_id == of)).scalars()}
        people: dict[str, int] = {}
        for ranking in found:
            if ranking.annotator not in people:
                people[ranking.annotator] = account_named(session, ranking.annotator).id
            task, account = keyed[ranking.task.id], people[ranking.annotator]
            if active_judgement(session, task.id, account) is not None:
                continue
            dense = {rank: place for place, rank in enumerate(sorted(set(ranking.ranks.values())), 1)}
            said = Said(ranks={key: dense[rank] for key, rank in ranking.ranks.items()})
            made = judgement_of(task, account, uuid.uuid4().hex, said)
            made.shown = [answer.key for answer in task.answers]
            session.add(made)
            session.flush()
            new += 1
    return Taken(new, len(found) - new, rejected)


def lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """The rows as JSONL."""
    for row in rows:
        yield json.dumps(row, ensure_ascii=False) + "\n"


def export(database: Database, of: int, folder: Path) -> dict[str, Path]:
    """Write tasks.jsonl, rankings.jsonl and skips.jsonl of a round to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, rows in (("tasks", task_rows), ("rankings", ranking_rows), ("skips", skip_rows)):
        written[name] = folder / f"{name}.jsonl"
        with written[name].open("w", encoding="utf-8") as file:
            file.writelines(lines(rows(database, of)))
    return written


def _row(judgement: Judgement, said: dict[str, Any]) -> dict[str, Any]:
    row = {"id": judgement.task.key, "annotator": judgement.account.name, **said}
    row |= {"all_bad": judgement.all_bad or None, "comment": judgement.comment, "seconds": judgement.seconds}
    row |= {"shown": judgement.shown, "time": round(judgement.created_at, 3)}
    return {key: value for key, value in row.items() if value is not None}


def _objects(name: str) -> Iterator[dict[str, Any]]:
    for line in Path(name).expanduser().read_text("utf-8-sig").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None
