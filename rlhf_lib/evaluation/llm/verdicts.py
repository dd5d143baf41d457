"""A cache of verdicts, and a count of the requests that each run has made, in one SQLite file that runs share."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rlhf_lib.errors import JudgeFailed
from rlhf_lib.evaluation.llm.prompt import Verdict

_TABLES = (
    "CREATE TABLE IF NOT EXISTS verdicts (question TEXT PRIMARY KEY, verdict TEXT NOT NULL, reply TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS spent (purse TEXT PRIMARY KEY, requests INTEGER NOT NULL)",
)
_PATIENCE = 60.0  # seconds that one process waits for another's write


class Verdicts:
    """Verdicts by question, and requests by purse: what one judge may spend in one run.

    Safe with many threads and processes: every change is one transaction of SQLite's, in its rollback journal rather
    than a write-ahead log, which network file systems can't share. Raises JudgeFailed where the file can't be
    read or written.
    """

    def __init__(self, file: Path) -> None:
        """`file`: made where it is missing."""
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as database:
            for table in _TABLES:
                database.execute(table)

    def get(self, question: str) -> Verdict | None:
        """The verdict on a question (see `question_key`); None where it isn't known."""
        with self._transaction() as database:
            row = database.execute("SELECT verdict FROM verdicts WHERE question = ?", (question,)).fetchone()
        return row[0] if row else None

    def put(self, question: str, verdict: Verdict, reply: str) -> None:
        """Keep a verdict, with the reply that it was read from. The first one stays."""
        with self._transaction("IMMEDIATE") as database:
            database.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?)", (question, verdict, reply))

    def take(self, purse: str, requests: int, most: int) -> bool:
        """Count the requests as spent, if the purse then holds no more than `most`; False where it would."""
        with self._transaction("IMMEDIATE") as database:
            after = _spent(database, purse) + requests
            if after <= most:
                database.execute("INSERT OR REPLACE INTO spent VALUES (?, ?)", (purse, after))
        return after <= most

    def spent(self, purse: str) -> int:
        """Requests counted so far."""
        with self._transaction() as database:
            return _spent(database, purse)

    @contextmanager
    def _transaction(self, kind: str = "DEFERRED") -> Iterator[sqlite3.Connection]:
        """On a connection of its own, so that threads share none."""
        try:
            with closing(sqlite3.connect(self.file, timeout=_PATIENCE, isolation_level=None)) as database:
                database.execute(f"BEGIN {kind}")
                yield database
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise JudgeFailed(
                f"the verdicts of judges in {self.file} can't be read or written ({error}): see that the disk isn't "
                "full; if the file is damaged, remove it, and judges are asked anew"
            ) from error


def _spent(database: sqlite3.Connection, purse: str) -> int:
    row = database.execute("SELECT requests FROM spent WHERE purse = ?", (purse,)).fetchone()
    return int(row[0]) if row else 0


def question_key(**parts: Any) -> str:
    """64 hex digits that change with any part of a question."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
