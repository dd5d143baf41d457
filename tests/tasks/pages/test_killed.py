"""A server that is killed in the middle: what it acknowledged is there, once, and what it didn't can be sent again."""

import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
from annotate_server import annotate_server
from annotated import Person, annotated, task_of

from tasks.annotation import accounts, exchange
from tasks.annotation.database import Database

PEOPLE, TASKS, EACH = 8, 16, 4
RANKS = {"a": 1, "b": 2, "c": 3}


class RemotePerson(Person):
    """Somebody at a server's pages. Like the page, sends again whatever isn't acknowledged."""

    def __init__(self, url: str, link: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=60)
        self.csrf = ""
        self.again(lambda: self.get(link))

    def again(self, what):
        while True:
            try:
                answer = what()
            except httpx.HTTPError:
                continue
            if answer.status_code < 500:
                return answer


def test_nothing_is_lost_and_nothing_twice(tmp_path):
    database = annotated(tmp_path, TASKS, people=" ".join(f"p{n}" for n in range(PEOPLE)), each=EACH)
    links = [f"/login/{accounts.link(database, f'p{n}')}" for n in range(PEOPLE)]
    database.close()
    acknowledged: list[tuple[str, int]] = []
    third = threading.Event()

    def work(number: int) -> None:
        person = RemotePerson(server.url, links[number])
        for count in range(TASKS):
            page = person.again(lambda: person.get("/rank"))
            if "data-task=" not in page.text:
                return
            task, submission = task_of(page)["task"], f"person-{number}-{count}"
            answer = person.again(lambda task=task, submission=submission: person.send(
                task=task, submission=submission, ranks=RANKS
            ))  # fmt: skip
            assert answer.status_code == 200, answer.text
            acknowledged.append((submission, task))
            if len(acknowledged) >= PEOPLE * 2:
                third.set()

    with annotate_server(tmp_path) as server, ThreadPoolExecutor(PEOPLE) as pool:
        working = [pool.submit(work, number) for number in range(PEOPLE)]
        assert third.wait(120)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        before = len(acknowledged)
        server.start()
        for one in working:
            one.result(120)
        assert server.end() == 0
    assert before < len(acknowledged) == TASKS * EACH
    kept = exchange.judgements(Database(server.database), 1)
    assert sorted((one.submission, one.task_id) for one in kept) == sorted(acknowledged)
    assert set(Counter(one.task_id for one in kept).values()) == {EACH}
