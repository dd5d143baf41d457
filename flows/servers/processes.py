"""Starting and ending other processes so that none is forgotten."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE = 30.0  # seconds between SIGTERM and SIGKILL
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end(process: Any) -> None:
    """End a process (subprocess' or psutil's), those that it started, and what is left of the group that it leads, even
    if it is gone itself: SIGTERM, and SIGKILL for what stays."""
    import psutil

    family = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(process.pid)
        family = {leader, *leader.children(recursive=True)}
    for other in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getpgid(other.pid) == process.pid:
                family.add(other)
    for how, patience in (("terminate", GRACE), ("kill", 10)):
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(member, how)()
        _, left = psutil.wait_procs(family, timeout=patience)
        family = set(left)


@contextmanager
def interruptible() -> Iterator[None]:
    """In the block SIGTERM and the closing of the terminal raise KeyboardInterrupt, as Ctrl-C does."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold signals back until the block has ended, so that no process is started and not on record."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for held in came:
        signal.raise_signal(held)
