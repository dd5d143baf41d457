"""Rounds and judgements: what is written, each in one transaction."""

from __future__ import annotations

import hashlib
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from rlhf_lib.data.rankings import files
from rlhf_lib.errors import DataError
from tasks.annotation.database import Database
from tasks.annotation.models import ANNOTATOR, RANKING, SKIP, Account, Answer, Judgement, Lease, Round, Task

LEASE = 30 * 60.0  # seconds
LONGEST = 6 * 3600.0  # seconds on one task: more is a page that was left open
TEXT = 4000  # characters of a comment or reason
VOTES = "Playground"


class Conflict(Exception):
    """The judgement can't be taken: the task is judged already, or isn't this annotator's. The text says which."""


@dataclass
class NewTask:
    """A task to be judged. `responses`: texts by their ids; `models`: who gave which, by the same ids."""

    id: str
    prompt: str
    responses: dict[str, str]
    criterion: str | None = None
    instructions: str | None = None
    policy: str | None = None
    messages: list[dict[str, str]] | None = None
    models: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """What an annotator says of a task. `ranks` by the answers' keys: 1 is best, equal is a tie; None for a skip.
    `all_bad` without ranks is a tie of all."""

    kind: str = RANKING
    ranks: Mapping[str, int] | None = None
    all_bad: bool = False
    reason: str | None = None
    comment: str | None = None
    seconds: float | None = None


def open_round(
    database: Database,
    name: str,
    tasks: Sequence[NewTask],
    *,
    annotators: int,
    lease: float = LEASE,
    handed_out: bool = True,
) -> tuple[Round, bool]:
    """The round of these tasks, made unless there is one with exactly these; and whether it was made.

    Raises DataError without tasks, and if fewer than one annotator is to judge each.
    """
    if not tasks:
        raise DataError("a round needs at least one task")
    if annotators < 1:
        raise DataError(f"--annotators is {annotators}: each task needs one at least")
    content = hashlib.sha256("\n".join(sorted(task.id for task in tasks)).encode()).hexdigest()
    with database.write() as session:
        known = session.execute(select(Round).where(Round.content == content)).scalar_one_or_none()
        if known is not None:
            known.annotators, known.lease = annotators, lease
            return known, False
        criteria = {task.criterion for task in tasks}
        texts = {task.instructions for task in tasks}
        made = Round(
            name=name,
            content=content,
            criterion=criteria.pop() if len(criteria) == 1 else None,
            instructions=texts.pop() if len(texts) == 1 else None,
            annotators=annotators,
            lease=lease,
            handed_out=handed_out,
            created_at=time.time(),
        )
        session.add(made)
        session.flush()
        session.add_all([_task(made, task) for task in tasks])
        return made, True


def _task(of: Round, new: NewTask) -> Task:
    task = Task(
        round_id=of.id,
        key=new.id,
        prompt=str(new.prompt),
        messages=new.messages,
        criterion=new.criterion,
        instructions=new.instructions,
        policy=new.policy,
    )
    task.answers = [
        Answer(position=place, key=key, text=text, model=new.models.get(key, new.policy))
        for place, (key, text) in enumerate(new.responses.items())
    ]
    return task


def shown_order(task: Task, account_id: int) -> list[Answer]:
    """The answers in the order drawn for this annotator: always the same for both."""
    answers = list(task.answers)
    seed = hashlib.sha256(f"{task.key}\n{task.id}\n{account_id}".encode()).digest()
    random.Random(seed).shuffle(answers)
    return answers


def submit(database: Database, account_id: int, task: int, submission: str, said: Said) -> tuple[Judgement, bool]:
    """Keep the judgement; the same submission again returns the first one. Also whether it is new.

    Raises DataError for one that isn't whole (a missing or unknown answer, a bad rank, a skip without a reason) and
    Conflict where this annotator has judged the task already or was never handed it.
    """
    try:
        with database.write() as session:
            return _submit(session, account_id, task, submission, said)
    except IntegrityError:  # the same again, or another tab, at the same moment: it is there now
        with database.write() as session:
            return _submit(session, account_id, task, submission, said)


def _submit(session: Session, account_id: int, task_id: int, submission: str, said: Said) -> tuple[Judgement, bool]:
    if not submission or len(submission) > 64:
        raise DataError("a submission needs an id of 64 characters at most")
    before = session.execute(select(Judgement).where(Judgement.submission == submission)).scalar_one_or_none()
    if before is not None:
        if (before.account_id, before.task_id) != (account_id, task_id):
            raise Conflict("this submission was another task's")
        return before, False
    lease = session.get(Lease, (task_id, account_id), with_for_update=True)
    if active_judgement(session, task_id, account_id) is not None:
        raise Conflict("you have judged this one already, perhaps in another tab")
    if lease is None:
        raise Conflict("this task isn't yours")
    task = session.get_one(Task, task_id)
    made = judgement_of(task, account_id, submission, said)
    session.add(made)
    session.delete(lease)
    session.flush()
    return made, True


def judgement_of(task: Task, account_id: int, submission: str, said: Said) -> Judgement:
    """What was said, checked and with dense ranks (1, 2, 2, 3). Raises DataError as `submit` does."""
    ranks = None
    if said.kind == RANKING:
        ranks = checked_ranks(task, said.ranks, said.all_bad)
    elif said.kind != SKIP:
        raise DataError(f"a judgement is a {RANKING} or a {SKIP}, not {said.kind!r}")
    elif not (said.reason or "").strip():
        raise DataError("a skip needs a reason")
    seconds = said.seconds
    return Judgement(
        submission=submission,
        task_id=task.id,
        account_id=account_id,
        kind=said.kind,
        ranks=ranks,
        shown=[answer.key for answer in shown_order(task, account_id)],
        all_bad=said.all_bad and ranks is not None,
        reason=_cut(said.reason) if said.kind == SKIP else None,
        comment=_cut(said.comment),
        seconds=None if seconds is None else min(max(float(seconds), 0.0), LONGEST),
        created_at=time.time(),
    )


def checked_ranks(task: Task, given: Mapping[str, int] | None, all_bad: bool) -> dict[str, int]:
    """Dense ranks of all of the task's answers, by key. Raises DataError for a missing or unknown answer and for what
    is no rank."""
    keys = [answer.key for answer in task.answers]
    if not given and all_bad:
        return dict.fromkeys(keys, 1)
    given = given or {}
    if unknown := [key for key in given if key not in keys]:
        raise DataError(f"the task has no answer {unknown[0]!r}")
    if missing := [key for key in keys if key not in given]:
        raise DataError(f"every answer needs a rank: {len(missing)} of {len(keys)} have none")
    if bad := [rank for rank in given.values() if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1]:
        raise DataError(f"a rank is a whole number from 1 on, not {bad[0]!r}")
    dense = {rank: place for place, rank in enumerate(sorted(set(given.values())), 1)}
    return {key: dense[given[key]] for key in keys}


def active_judgement(session: Session, task: int, account_id: int) -> Judgement | None:
    """The annotator's judgement of the task that stands."""
    wanted = select(Judgement).where(
        Judgement.task_id == task, Judgement.account_id == account_id, Judgement.undone_at.is_(None)
    )
    return session.execute(wanted).scalar_one_or_none()


def last_judgement(session: Session, account_id: int) -> Judgement | None:
    """The annotator's latest judgement that stands, in a round that is still open."""
    wanted = (
        select(Judgement)
        .join(Task, Judgement.task_id == Task.id)
        .join(Round, Task.round_id == Round.id)
        .where(Judgement.account_id == account_id, Judgement.undone_at.is_(None))
        .where(Round.handed_out, ~Round.closed)
        .order_by(Judgement.id.desc())
        .limit(1)
    )
    return session.execute(wanted).scalar_one_or_none()


def undo(database: Database, account_id: int, judgement: int) -> None:
    """Take the annotator's last judgement back: its task is in their hands again. Doing it twice undoes once.

    Raises Conflict for a judgement that isn't theirs or isn't their last.
    """
    with database.write() as session:
        session.get(Account, account_id, with_for_update={"key_share": True})
        given = session.get(Judgement, judgement)
        if given is None or given.account_id != account_id:
            raise Conflict("this judgement isn't yours")
        if given.undone_at is not None:
            return
        last = last_judgement(session, account_id)
        if last is None or last.id != judgement:
            raise Conflict("only the last judgement can be undone")
        given.undone_at = now = time.time()
        session.merge(
            Lease(task_id=given.task_id, account_id=account_id, handed_at=0.0, until=now + given.task.round.lease)
        )


def set_closed(database: Database, of: int, closed: bool) -> None:
    """Close a round, so that nothing of it is handed out any more, or open it again. What comes late is still taken."""
    with database.write() as session:
        session.execute(update(Round).where(Round.id == of).values(closed=closed))


def add_vote(
    database: Database,
    prompt: str,
    answers: Sequence[str],
    preferred: int | None,
    annotator: str,
    *,
    submission: str | None = None,
    models: Sequence[str | None] = (),
    messages: list[dict[str, str]] | None = None,
    criterion: str | None = None,
    all_bad: bool = False,
    comment: str | None = None,
    seconds: float | None = None,
    round_name: str = VOTES,
) -> Judgement:
    """Keep a vote between two answers (or the choice of one among several) as a ranking, in a round of its own that
    isn't handed out to annotators; it is exported and counted like all others.

    `answers`: the texts in the order in which they were shown. `preferred`: the place of the better one in it (0 or 1),
    None for a tie. `annotator`: a name; an account without a login is made for one that there isn't. `models`: who gave
    each answer. `prompt`: the text, or the dialogue that a Conversation reads as, with its `messages`. `submission`: an
    id that the page made; the same one again is the same vote. Another vote on the same two answers by the same person
    takes the earlier one's place.

    Raises DataError for fewer than two answers, equal ones, and a place that isn't there.
    """
    if len(answers) < 2 or len({text.strip() for text in answers}) < len(answers):
        raise DataError("a vote needs two different answers")
    if preferred is not None and not 0 <= preferred < len(answers):
        raise DataError(f"preferred is {preferred}, and there are {len(answers)} answers")
    if models and len(models) != len(answers):
        raise DataError(f"{len(models)} models for {len(answers)} answers")
    by_text = sorted(range(len(answers)), key=lambda place: answers[place])  # whatever their order, it is one task
    keys = {place: chr(ord("a") + rank) for rank, place in enumerate(by_text)}
    responses = {keys[place]: answers[place] for place in by_text}
    new = NewTask(
        id=files.task_id(str(prompt), list(responses.values()), criterion),
        prompt=str(prompt),
        responses=responses,
        criterion=criterion,
        messages=messages,
        models={keys[place]: name for place, name in enumerate(models) if name},
    )
    ranks = {keys[place]: 1 if preferred in (None, place) else 2 for place in by_text}
    said = Said(ranks=ranks, all_bad=all_bad, comment=comment, seconds=seconds)
    submission = submission or uuid.uuid4().hex
    shown = [keys[place] for place in range(len(answers))]
    for attempt in range(3):
        try:
            with database.write() as session:
                return _vote(session, round_name, new, annotator, submission, said, shown)
        except IntegrityError:  # somebody else made the account, the task or the vote at the same moment
            if attempt == 2:
                raise
    raise AssertionError("unreachable")


def _vote(
    session: Session, name: str, new: NewTask, annotator: str, submission: str, said: Said, shown: list[str]
) -> Judgement:
    before = session.execute(select(Judgement).where(Judgement.submission == submission)).scalar_one_or_none()
    if before is not None:
        return before
    content = hashlib.sha256(f"votes\n{name}".encode()).hexdigest()
    fields = {"name": name, "annotators": 1, "lease": LEASE, "handed_out": False, "closed": False}
    _insert_new(session, Round, {"content": content, "created_at": time.time(), **fields})
    of = session.execute(select(Round).where(Round.content == content)).scalar_one()
    task = session.execute(select(Task).where(Task.round_id == of.id, Task.key == new.id)).scalar_one_or_none()
    if task is None:
        session.add(task := _task(of, new))
        session.flush()
    account = account_named(session, annotator)
    session.execute(
        update(Judgement)
        .where(Judgement.task_id == task.id, Judgement.account_id == account.id, Judgement.undone_at.is_(None))
        .values(undone_at=time.time())
    )
    made = judgement_of(task, account.id, submission, said)
    made.shown = shown
    session.add(made)
    session.flush()
    return made


def account_named(session: Session, name: str) -> Account:
    """The account of this name; one without a login is made if there is none."""
    fields = {"role": ANNOTATOR, "generation": 1, "active": True, "created_at": time.time(), "link_until": 0.0}
    _insert_new(session, Account, {"name": name, **fields})
    return session.execute(select(Account).where(Account.name == name)).scalar_one()


def _insert_new(session: Session, table: type[Any], values: dict[str, Any]) -> None:
    """Insert the row unless a unique column has the value already."""
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    session.execute(dialect.insert(table).values(**values).on_conflict_do_nothing())


def _cut(text: str | None) -> str | None:
    return text.strip()[:TEXT] or None if text else None
