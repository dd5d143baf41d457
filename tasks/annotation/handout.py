"""Which task an annotator gets next: K of them each task, and every two of them about as many tasks in common.

A begun task comes first, so that agreement is known early and a round that ends early leaves little half done; unless
the annotator shares more tasks with those who have it than with somebody else: then a new one is begun.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, select, union
from sqlalchemy.orm import Session

from tasks.annotation.database import Database
from tasks.annotation.models import RANKING, Account, Answer, Judgement, Lease, Round, Task
from tasks.annotation.store import shown_order


@dataclass(frozen=True)
class Handed:
    """A task in an annotator's hands. `answers`: in the order drawn for them; `before`: what they said and undid."""

    task: Task
    answers: list[Answer]
    before: Judgement | None


@dataclass(frozen=True)
class Progress:
    """Of one annotator in the open rounds: judged (skips too), and what there still is for them."""

    judged: int
    left: int


def next_task(database: Database, account_id: int, now: float | None = None) -> Handed | None:
    """The task that the annotator left, or else the next one, kept for them for the round's lease; None if there is
    none, for now. Two at once, or the same one in two tabs: a task never has more than K."""
    now = time.time() if now is None else now
    with database.write() as session:
        session.get(Account, account_id, with_for_update={"key_share": True})  # one page of theirs at a time
        for of in session.execute(_open_rounds()).scalars():
            task = _own(session, account_id, of, now) or _new(session, account_id, of, now)
            if task is not None:
                return Handed(task, shown_order(task, account_id), _undone(session, task.id, account_id))
    return None


def progress(database: Database, account_id: int, now: float | None = None) -> Progress:
    """How far the annotator is. Raises nothing for an account that has nothing to do."""
    now = time.time() if now is None else now
    judged = left = 0
    with database.read() as session:
        for of in session.execute(_open_rounds()).scalars():
            held = _Holders(session, of, now)
            judged += len(held.judged[account_id])
            left += sum(held.open_to(task, account_id) for task in held.tasks)
    return Progress(judged, left)


def choose(
    tasks: Sequence[int], holders: Mapping[int, set[int]], own: set[int], account_id: int, annotators: int
) -> list[int]:
    """The tasks that this annotator may get, best first.

    `holders`: who has judged, or holds, each task; `own`: the tasks that this annotator has had. With `shared` tasks in
    common, a begun task costs the most that is shared with one of its holders, a new one half more than the least that
    is shared with anybody. Ties are in an order drawn for the annotator.
    """
    shared: Counter[int] = Counter()
    everyone = {name for held in holders.values() for name in held} - {account_id}
    for held in holders.values():
        if account_id in held:
            shared.update(held - {account_id})
    least = min((shared[name] for name in everyone), default=0)
    costs = []
    for task in tasks:
        held = holders.get(task, set())
        if task in own or account_id in held or len(held) >= annotators:
            continue
        cost = max(shared[name] for name in held) if held else least + 0.5
        drawn = hashlib.sha256(f"{account_id}/{task}".encode()).digest()
        costs.append((cost, -len(held), drawn if held else task.to_bytes(8), task))
    return [task for *_, task in sorted(costs)]


class _Holders:
    """Who has judged or holds which task of a round."""

    def __init__(self, session: Session, of: Round, now: float) -> None:
        self.tasks = list(session.execute(select(Task.id).where(Task.round_id == of.id).order_by(Task.id)).scalars())
        self.annotators = of.annotators
        self.held: dict[int, set[int]] = defaultdict(set)  # by task: rankings and leases that run
        self.judged: dict[int, set[int]] = defaultdict(set)  # by account: skips too
        said = (
            select(Judgement.task_id, Judgement.account_id, Judgement.kind)
            .join(Task, Judgement.task_id == Task.id)
            .where(Task.round_id == of.id, Judgement.undone_at.is_(None))
        )
        for task, account, kind in session.execute(said):
            self.judged[account].add(task)
            if kind == RANKING:
                self.held[task].add(account)
        leases = select(Lease.task_id, Lease.account_id).join(Task, Lease.task_id == Task.id)
        for task, account in session.execute(leases.where(Task.round_id == of.id, Lease.until > now)):
            self.held[task].add(account)

    def open_to(self, task: int, account_id: int) -> bool:
        """Whether the task is still to be judged by this annotator."""
        if task in self.judged[account_id]:
            return False
        return len(self.held[task] - {account_id}) < self.annotators


def _own(session: Session, account_id: int, of: Round, now: float) -> Task | None:
    """What the annotator has in hand, its lease renewed; not if it ran out and others have it by now."""
    mine = (
        select(Lease)
        .join(Task, Lease.task_id == Task.id)
        .where(Lease.account_id == account_id, Task.round_id == of.id)
        .order_by(Lease.handed_at, Lease.task_id)
        .with_for_update(of=Lease, key_share=True)
    )
    for lease in session.execute(mine).scalars():
        if lease.until > now or _locked(session, lease.task_id, of, account_id, now):
            lease.until = now + of.lease
            return session.get_one(Task, lease.task_id)
    return None


def _new(session: Session, account_id: int, of: Round, now: float) -> Task | None:
    found = _Holders(session, of, now)
    mine = set(session.execute(select(Lease.task_id).where(Lease.account_id == account_id)).scalars())
    wanted = choose(found.tasks, found.held, found.judged[account_id] | mine, account_id, of.annotators)
    for waits in (False, True):  # tasks that others are just being handed are passed over, unless there is no other
        for task in wanted:
            if _locked(session, task, of, account_id, now, waits=waits):
                session.add(Lease(task_id=task, account_id=account_id, handed_at=now, until=now + of.lease))
                session.flush()
                return session.get_one(Task, task)
    return None


def _locked(session: Session, task: int, of: Round, account_id: int, now: float, *, waits: bool = True) -> bool:
    """Lock the task until the transaction's end if there is still a place for this annotator, and only then: who waits
    for one task must not hold another, or two could wait for each other. SQLite has one writer anyway."""
    lock = select(Task.id).where(Task.id == task)
    with session.begin_nested() as tried:
        got = session.execute(lock.with_for_update(of=Task, key_share=True, skip_locked=not waits)).scalar_one_or_none()
        if got is not None and len(_holders(session, task, now) - {account_id}) < of.annotators:
            return True
        tried.rollback()
    return False


def _holders(session: Session, task: int, now: float) -> set[int]:
    """Who has judged or holds the task. In one statement, for between two a lease could become a judgement unseen."""
    said = select(Judgement.account_id).where(
        Judgement.task_id == task, Judgement.undone_at.is_(None), Judgement.kind == RANKING
    )
    leases = select(Lease.account_id).where(Lease.task_id == task, Lease.until > now)
    return set(session.execute(union(said, leases)).scalars())


def _open_rounds() -> Select[tuple[Round]]:
    return select(Round).where(Round.handed_out, ~Round.closed).order_by(Round.id)


def _undone(session: Session, task: int, account_id: int) -> Judgement | None:
    wanted = select(Judgement).where(Judgement.task_id == task, Judgement.account_id == account_id)
    return session.execute(wanted.order_by(Judgement.id.desc()).limit(1)).scalar_one_or_none()
