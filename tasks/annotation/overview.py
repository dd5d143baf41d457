"""What the owner sees: how far rounds are, how well people agree, how long they take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from sqlalchemy import func, select

from rlhf_lib.data.rankings import consensus
from tasks.annotation import exchange
from tasks.annotation.database import Database
from tasks.annotation.models import RANKING, SKIP, Account, Judgement, Round, Task

FLAG_BELOW = 0.2


@dataclass(frozen=True)
class RoundRow:
    """A round in the list. `wanted`: rankings that it is to have; 0 for votes, which nobody is asked for."""

    id: int
    name: str
    tasks: int
    rankings: int
    skips: int
    wanted: int
    handed_out: bool
    closed: bool


@dataclass(frozen=True)
class AnnotatorRow:
    """An annotator's part in a round. `alpha` (against the others' majority) and `agreement` as `rlhf rankings` has
    them; `seconds`: the median of a task."""

    name: str
    rankings: int
    skips: int
    seconds: float | None
    alpha: float | None
    agreement: float | None
    pairs: int
    ties: float | None
    flagged: bool


@dataclass(frozen=True)
class Overview:
    """A round as it stands. `depth`: how many tasks have 0, 1, 2, ... rankings."""

    round: Round
    row: RoundRow
    alpha: float | None
    annotators: list[AnnotatorRow]
    depth: dict[int, int]
    seconds: float | None
    skipped: list[Judgement]
    comments: list[Judgement]


def rounds(database: Database) -> list[RoundRow]:
    """All rounds, in the order in which they were opened."""
    with database.read() as session:
        tasks = dict(session.execute(select(Task.round_id, func.count()).group_by(Task.round_id)).tuples().all())
        said = (
            select(Task.round_id, Judgement.kind, func.count())
            .join(Task, Judgement.task_id == Task.id)
            .where(Judgement.undone_at.is_(None))
            .group_by(Task.round_id, Judgement.kind)
        )
        counts: dict[tuple[int, str], int] = {(of, kind): count for of, kind, count in session.execute(said)}
        found = session.execute(select(Round).order_by(Round.id)).scalars().all()
    return [
        RoundRow(
            of.id,
            of.name,
            tasks.get(of.id, 0),
            counts.get((of.id, RANKING), 0),
            counts.get((of.id, SKIP), 0),
            tasks.get(of.id, 0) * of.annotators if of.handed_out else 0,
            of.handed_out,
            of.closed,
        )
        for of in found
    ]


def overview(database: Database, of: int, flag_below: float = FLAG_BELOW) -> Overview | None:
    """The round's figures; None if there is no such round."""
    with database.read() as session:
        found = session.get(Round, of)
        if found is None:
            return None
        ids = list(session.execute(select(Task.id).where(Task.round_id == of)).scalars())
    said = exchange.judgements(database, of)
    rankings = exchange.rankings(said)
    names, values_AU = consensus.judgements(rankings)
    agreement = consensus.annotator_agreement(names, values_AU) if rankings else {}
    flagged = set(consensus.flagged(agreement, flag_below))
    by_task: dict[int, int] = defaultdict(int)
    for judgement in said:
        by_task[judgement.task_id] += judgement.kind == RANKING
    depth: dict[int, int] = defaultdict(int)
    for task in ids:
        depth[by_task[task]] += 1
    people = sorted({judgement.account.name for judgement in said})
    return Overview(
        round=found,
        row=next(row for row in rounds(database) if row.id == of),
        alpha=consensus.alpha(values_AU) if rankings else None,
        annotators=[_row(name, said, agreement.get(name, {}), name in flagged) for name in people],
        depth=dict(sorted(depth.items())),
        seconds=_median(said),
        skipped=[judgement for judgement in said if judgement.kind == SKIP],
        comments=[judgement for judgement in said if judgement.comment],
    )


def _row(name: str, said: Sequence[Judgement], found: dict[str, float | None], flagged: bool) -> AnnotatorRow:
    own = [judgement for judgement in said if judgement.account.name == name]
    return AnnotatorRow(
        name=name,
        rankings=sum(judgement.kind == RANKING for judgement in own),
        skips=sum(judgement.kind == SKIP for judgement in own),
        seconds=_median(own),
        alpha=found.get("alpha"),
        agreement=found.get("agreement"),
        pairs=int(found.get("pairs") or 0),
        ties=found.get("ties"),
        flagged=flagged,
    )


def _median(said: Sequence[Judgement]) -> float | None:
    times = [judgement.seconds for judgement in said if judgement.seconds is not None and judgement.kind == RANKING]
    return median(times) if times else None


def people(database: Database) -> dict[int, int]:
    """How many rankings each account has, by its id."""
    with database.read() as session:
        wanted = (
            select(Account.id, func.count())
            .join(Judgement, Judgement.account_id == Account.id)
            .where(Judgement.undone_at.is_(None), Judgement.kind == RANKING)
            .group_by(Account.id)
        )
        return dict(session.execute(wanted).tuples().all())
