"""Processes that end with the one that launched them: PPO's would otherwise train on, beside the run that resumes."""

from __future__ import annotations

import os
import threading
import time

LAUNCHER = "RLHF_LAUNCHER"  # the environment variable that holds its process id
_EVERY = 1.0  # seconds between looks


def end_with_launcher() -> None:
    """End this process soon after its launcher, however that ended. Does nothing in one that nobody launched."""
    if (launcher := os.environ.get(LAUNCHER)) is not None:
        threading.Thread(target=_watch, args=(int(launcher),), daemon=True).start()


def _watch(launcher: int) -> None:
    while True:
        try:
            os.kill(launcher, 0)
        except ProcessLookupError:
            os._exit(1)
        except PermissionError:
            pass
        time.sleep(_EVERY)
