"""What the tests of annotation share: a database, tasks, people, and a person at the pages without a browser."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from tasks.annotation import accounts
from tasks.annotation.database import Database, sqlite_url
from tasks.annotation.store import NewTask, open_round
from tasks.pages.app import create_app

PASSWORD = "correct horse"
URL = "http://127.0.0.1"


def new_tasks(count: int, answers: int = 3) -> list[NewTask]:
    """Tasks t0, t1, ... with answers a, b, c, ..."""
    keys = [chr(ord("a") + place) for place in range(answers)]
    return [
        NewTask(
            f"t{n}", f"Question {n}?", {key: f"Answer {key} to {n}." for key in keys}, "helpful", policy="secret-model"
        )
        for n in range(count)
    ]


def annotated(folder: Path, tasks: int = 4, *, people: str = "ann ben", each: int = 2, answers: int = 3) -> Database:
    """A database with a round, annotators of these names, and the owner `boss`; everybody's password is PASSWORD."""
    database = Database(sqlite_url(folder / "annotation.db"))
    for name in people.split():
        accounts.add(database, name, password=PASSWORD)
    accounts.add(database, "boss", role="owner", password=PASSWORD)
    open_round(database, "round", new_tasks(tasks, answers), annotators=each)
    return database


def task_of(page: Any) -> dict[str, Any]:
    """What the page for ranking tells its script: account, task, keys by letter, ranks so far."""
    return json.loads(unescape(re.search(r'data-task="([^"]+)"', page.text)[1]))


class Person:
    """Somebody at the pages: keeps cookies, and sends the token that the last page held."""

    def __init__(self, database: Database, name: str | None = None) -> None:
        self.client = TestClient(create_app(database), base_url=URL, follow_redirects=False)
        self.csrf = ""
        if name is not None:
            answer = self.get(f"/login/{accounts.link(database, name)}")
            assert answer.status_code == 303, answer.text

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        if found := re.search(r'name="csrf" (?:content|value)="([^"]+)"', answer.text):
            self.csrf = found[1]
        return answer

    def post(self, path: str, **form: Any) -> Any:
        return self.client.post(path, data={"csrf": self.csrf, **form})

    def send(self, **said: Any) -> Any:
        """A judgement, as the page sends it."""
        return self.client.post("/rank", json=said, headers={"X-CSRF-Token": self.csrf})

    def upload(self, path: str, name: str, content: str, **form: Any) -> Any:
        return self.client.post(path, data={"csrf": self.csrf, **form}, files={"file": (name, content)})
