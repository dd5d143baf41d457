"""The tables: accounts, rounds, their tasks and answers, what is handed out, and judgements.

Times are seconds since 1970 (UTC).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Double, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

ANNOTATOR, OWNER = "annotator", "owner"
RANKING, SKIP = "ranking", "skip"


class Base(DeclarativeBase):
    """Every table's base."""


class Setting(Base):
    """What the pages keep for themselves, such as the key that signs cookies."""

    __tablename__ = "setting"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Account(Base):
    """Who logs in. `generation` counts resets: sessions of an earlier one end. Without a password and a link, nobody
    logs in as it: votes of the playground's visitors are kept under such names."""

    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    role: Mapped[str] = mapped_column(String(16), default=ANNOTATOR)
    password: Mapped[str | None] = mapped_column(Text)
    link: Mapped[str | None] = mapped_column(String(64), unique=True)  # sha256 of the login link's token
    link_until: Mapped[float] = mapped_column(Double, default=0.0)
    generation: Mapped[int] = mapped_column(default=1)
    active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[float] = mapped_column(Double)


class Round(Base):
    """Tasks that are judged together by `annotators` people each. `handed_out`: false for votes from elsewhere.
    `content` identifies the tasks, so that opening the same file again makes no second round."""

    __tablename__ = "round"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    content: Mapped[str] = mapped_column(String(64), unique=True)
    criterion: Mapped[str | None] = mapped_column(Text)
    instructions: Mapped[str | None] = mapped_column(Text)
    annotators: Mapped[int]
    lease: Mapped[float] = mapped_column(Double)  # seconds that a task is kept for whom it was handed to
    handed_out: Mapped[bool] = mapped_column(default=True)
    closed: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float] = mapped_column(Double)


class Task(Base):
    """A prompt and its answers. `key` is the id in the files."""

    __tablename__ = "task"
    __table_args__ = (UniqueConstraint("round_id", "key"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("round.id", ondelete="CASCADE"), index=True)
    key: Mapped[str] = mapped_column(Text)
    prompt: Mapped[str] = mapped_column(Text)
    messages: Mapped[list[dict[str, str]] | None] = mapped_column(JSON)
    criterion: Mapped[str | None] = mapped_column(Text)
    instructions: Mapped[str | None] = mapped_column(Text)
    policy: Mapped[str | None] = mapped_column(Text)
    answers: Mapped[list[Answer]] = relationship(order_by="Answer.position", lazy="selectin")
    round: Mapped[Round] = relationship(lazy="joined", innerjoin=True)


class Answer(Base):
    """One answer to a task's prompt. `model`: who gave it, which annotators aren't told."""

    __tablename__ = "answer"
    __table_args__ = (UniqueConstraint("task_id", "key"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("task.id", ondelete="CASCADE"), index=True)
    position: Mapped[int]
    key: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)


class Lease(Base):
    """A task in an annotator's hands, until it is judged. One that ran out may go to somebody else too; a judgement
    that comes late is taken all the same."""

    __tablename__ = "lease"
    task_id: Mapped[int] = mapped_column(ForeignKey("task.id", ondelete="CASCADE"), primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"), primary_key=True, index=True)
    handed_at: Mapped[float] = mapped_column(Double)
    until: Mapped[float] = mapped_column(Double)


class Judgement(Base):
    """A ranking or a skip, whole. `submission` is the id that the page made, so that sending it twice counts once. Of
    an account's judgements of a task, one at most isn't undone."""

    __tablename__ = "judgement"
    __table_args__ = (
        Index(
            "one_judgement",
            "task_id",
            "account_id",
            unique=True,
            sqlite_where=text("undone_at IS NULL"),
            postgresql_where=text("undone_at IS NULL"),
        ),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    submission: Mapped[str] = mapped_column(String(64), unique=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("task.id", ondelete="CASCADE"), index=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    ranks: Mapped[dict[str, int] | None] = mapped_column(JSON)  # by the answers' keys: 1 is best, equal is a tie
    shown: Mapped[list[str]] = mapped_column(JSON)  # the keys in the order in which this annotator saw them
    all_bad: Mapped[bool] = mapped_column(default=False)
    reason: Mapped[str | None] = mapped_column(Text)  # of a skip
    comment: Mapped[str | None] = mapped_column(Text)
    seconds: Mapped[float | None] = mapped_column(Double)  # with the task in front of them
    created_at: Mapped[float] = mapped_column(Double)
    undone_at: Mapped[float | None] = mapped_column(Double)
    task: Mapped[Task] = relationship()
    account: Mapped[Account] = relationship()

    def content(self) -> dict[str, Any]:
        """What was said, without when."""
        names = ("kind", "ranks", "all_bad", "reason", "comment")
        return {name: getattr(self, name) for name in names}
