"""What bounds a flow run: its time, and the one task at a time that a GPU takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from prefect import tags
from prefect.exceptions import TerminationSignal

from flows.servers import temporary_server
from rlhf_lib.errors import TimeLimit, notes

GRACE = 60.0  # seconds between SIGTERM and SIGKILL
_WATCH = """
import os, signal, sys, time
watched, limit, grace = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
for wait, what in ((limit, signal.SIGTERM), (grace, signal.SIGKILL)):
    until = time.monotonic() + wait
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 1))
        if os.getppid() != watched:
            sys.exit()
    os.kill(watched, what)
"""


def gpu_limit() -> AbstractContextManager[object]:
    """Tag the tasks inside with `gpu`, so that the server's limit on that tag runs one at a time on all machines. A
    temporary server has no limits, and asking it for a slot takes seconds."""
    return nullcontext() if temporary_server.in_use() else tags("gpu")


@contextmanager
def time_limit(minutes: float | None, grace: float = GRACE) -> Iterator[None]:
    """End the block after so many minutes, and the process where the block hangs; None: never.

    Prefect's own timeout raises in the flow's thread, which notices only when a C call returns. Here another process
    sends signals: SIGTERM at the limit, on which PPO saves its last step boundary, and SIGKILL where a call (a hung
    collective, a stuck file system) hasn't returned a minute later. Raises TimeLimit in place of what SIGTERM leads to.
    """
    if minutes is None:
        yield
        return
    seconds, start = 60 * minutes, time.monotonic()
    watch = [sys.executable, "-S", "-E", "-c", _WATCH, str(os.getpid()), str(seconds), str(grace)]
    watchdog = subprocess.Popen(watch, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    except (TerminationSignal, SystemExit) as error:
        if time.monotonic() - start < seconds:
            raise
        kept = next(iter(notes(error)), "The same recipe again reuses the finished stages")
        raise TimeLimit(f"the time limit of {minutes:g} minutes is over. {kept}") from None
    finally:
        watchdog.kill()
        watchdog.wait()
