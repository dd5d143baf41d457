"""What the terminal shows while a command imports torch and Prefect, and starts a server: seconds, on a busy machine a
minute."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LINE = "starting Prefect and MLflow"
_LONG = 10.0  # seconds after which a log says so


@contextmanager
def starting() -> Iterator[None]:
    """Inside the block a terminal shows a live line; a log gets a plain one if it takes long."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        with console.status(_LINE):
            console.show_cursor(True)  # a process that is killed can't bring it back
            yield
        return
    line = threading.Timer(_LONG, print, [f"rlhf: {_LINE}"], {"file": sys.stderr})
    line.daemon = True
    line.start()
    try:
        yield
    finally:
        line.cancel()
