"""Work that answers people, in one thread: so much of it at once, step by step in turn, and the rest waits in a queue.

One thread, since torch shares the device anyway, and tokenizers and rewards aren't made for several.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Generator
from contextlib import suppress
from typing import Any

from rlhf_lib.errors import RLHFError

Event = dict[str, Any]
Steps = Generator[Event, None, None]
_LOOK = 1.0  # seconds between looks whether the client is there


class Full(RLHFError):
    """Too many wait already."""


class Job:
    """`steps` on their way to one client; setting `gone` ends them before their next step."""

    def __init__(self, steps: Steps) -> None:
        self.steps, self.gone = steps, threading.Event()
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    def tell(self, event: Event | Exception | None) -> None:
        """From any thread: an event for the client, an error, or None for the end."""
        with suppress(RuntimeError):  # the loop has ended with the server
            self._loop.call_soon_threadsafe(self._told.put_nowait, event)

    async def events(self) -> AsyncIterator[Event | None]:
        """Places in the queue ({"place": 1} is next), then what the steps give; None where nothing happened for a
        moment, so that the caller can look whether anybody still listens. Leaving it ends the work."""
        try:
            while True:
                try:
                    event = await asyncio.wait_for(self._told.get(), _LOOK)
                except TimeoutError:
                    yield None
                    continue
                if event is None:
                    return
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.gone.set()


class AnswerQueue:
    """At most `at_once` jobs advance, a step each in turn; at most `waiting` more wait."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self.at_once, self.most_waiting = at_once, waiting
        self._active: list[Job] = []
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def add(self, steps: Steps) -> Job:
        """Put work in. Raises Full."""
        job = Job(steps)
        with self._changed:
            if len(self._active) + len(self._waiting) >= self.at_once + self.most_waiting:
                raise Full(f"{len(self._waiting)} questions wait already: try again in a moment")
            self._waiting.append(job)
            self._admit()
            if job in self._waiting:
                job.tell({"place": len(self._waiting)})
            self._changed.notify()
        return job

    def close(self) -> None:
        """End all work and the thread."""
        with self._changed:
            self._closed = True
            for job in [*self._active, *self._waiting]:
                job.gone.set()
            self._changed.notify()
        self._thread.join()

    def _admit(self) -> None:
        """Let those who waited longest begin, and tell the others their places. Under the lock."""
        before = list(self._waiting)
        for job in before:
            if job.gone.is_set():
                self._waiting.remove(job)
        while self._waiting and len(self._active) < self.at_once:
            self._active.append(self._waiting.popleft())
        if list(self._waiting) != before:
            for place, job in enumerate(self._waiting, 1):
                job.tell({"place": place})

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._active or self._waiting or self._closed):
                    self._changed.wait()
                self._admit()
                if self._closed and not self._active:
                    return
                now = list(self._active)
            for job in now:
                if not self._step(job):
                    with self._changed:
                        self._active.remove(job)

    def _step(self, job: Job) -> bool:
        """Whether there is more to do."""
        try:
            if job.gone.is_set():
                job.steps.close()
            else:
                job.tell(next(job.steps))
                return True
        except StopIteration:
            pass
        except Exception as error:  # for whoever waits for it
            job.tell(error)
        job.tell(None)
        return False
