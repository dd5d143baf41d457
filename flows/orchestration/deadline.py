"""Time limits that hold while a C call runs.

Prefect's own timeout raises in the flow's thread, which hears of it when the call returns. Here a process beside it
sends signals: SIGTERM at the limit, on which PPO leaves its last step boundary, and SIGKILL where a call (a hung
collective, a stuck file system) doesn't return in the minute after.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.exceptions import TerminationSignal

from rlhf_lib.errors import TimeLimit

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


@contextmanager
def time_limit(minutes: float | None, grace: float = GRACE) -> Iterator[None]:
    """End the block, and where it hangs the process, after so many minutes; None: never.

    Raises TimeLimit in place of what SIGTERM leads to.
    """
    if minutes is None:
        yield
        return
    seconds, start = 60 * minutes, time.monotonic()
    watch = [sys.executable, "-S", "-E", "-c", _WATCH, str(os.getpid()), str(seconds), str(grace)]
    watchdog = subprocess.Popen(watch, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    except (TerminationSignal, SystemExit):
        if time.monotonic() - start < seconds:
            raise
        raise TimeLimit(
            f"stopped after {minutes:g} minutes, its time limit; the same recipe started again goes on from PPO's last "
            "checkpoint and reuses the stages that were finished"
        ) from None
    finally:
        watchdog.kill()
        watchdog.wait()
