"""The database of annotation: SQLite in a file, or PostgreSQL by a URL; transactions that are whole or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from rlhf_lib.errors import EnvironmentFault
from tasks.annotation.models import Base, Setting

WAIT = 30  # seconds that a transaction of SQLite waits for another's end


class Database:
    """`with database.write() as session:` commits at its end, or leaves nothing if anything was raised.

    Writers of SQLite queue from their start on (BEGIN IMMEDIATE), so that what one has read can't change before it
    writes; PostgreSQL's lock the rows that they are about. What was committed is on the disk (SQLite: WAL,
    synchronous=FULL).
    """

    def __init__(self, url: str) -> None:
        """Opens the database, and makes the tables that aren't there. Raises EnvironmentFault where it can't."""
        self.url = url
        try:
            self.engine = _engine(url)
            self._tables()
        except (ArgumentError, OperationalError, ModuleNotFoundError) as error:
            reason = str(error).splitlines()[0]
            shown = make_url(url).render_as_string() if not isinstance(error, ArgumentError) else "--database"
            raise EnvironmentFault(f"the database of annotation, {shown}, can't be opened: {reason}") from None
        self._writer = self.engine.execution_options(rlhf_writes=True)

    def _tables(self) -> None:
        try:
            with self.engine.execution_options(rlhf_writes=True).begin() as connection:
                Base.metadata.create_all(connection)
        except (IntegrityError, OperationalError, ProgrammingError):  # another process made them at the same moment
            Base.metadata.create_all(self.engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that changes nothing. Its objects can be used after it."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed at the end. Its objects can be used after it."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def secret(self, name: str) -> str:
        """A random text of the database's own, the same in each of its servers: made when first asked for."""
        try:
            with self.write() as session:
                kept = session.get(Setting, name)
                if kept is None:
                    session.add(kept := Setting(name=name, value=secrets.token_urlsafe(32)))
                return kept.value
        except IntegrityError:
            with self.read() as session:
                return session.execute(select(Setting.value).where(Setting.name == name)).scalar_one()

    def close(self) -> None:
        """Let the connections go."""
        self.engine.dispose()


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{file}"


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": WAIT})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver would begin transactions by itself, and later
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Any) -> None:
        writes = connection.get_execution_options().get("rlhf_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
