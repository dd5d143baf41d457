"""How far long work has come, for whoever listens.

    with listening(display):
        ...  # anything in here that calls report("step", 31, 50, loss=2.1)

Without a listener a report costs one look at a variable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Listener(Protocol):
    """Where progress goes: a line in the terminal, a log."""

    def report(self, unit: str, done: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """So many units are done, of `total` where that is known."""

    def note(self, text: str) -> None:
        """Something to say beside the progress. Signal handlers call this, so it may only store the text."""


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside the block, reports go to the listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def listened() -> bool:
    """Whether there is a listener."""
    return _listener.get() is not None


def report(unit: str, done: int, total: int | None = None, **metrics: float) -> None:
    """Tell the listener, if any, that so many units (steps, responses, texts) are done."""
    if (listener := _listener.get()) is not None:
        listener.report(unit, done, total, metrics)


def note(text: str) -> None:
    """Give the listener, if any, a remark to show."""
    if (listener := _listener.get()) is not None:
        listener.note(text)
