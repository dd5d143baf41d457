"""Settings that must precede all other imports: called by the `rlhf` command and by the worker's entry."""

from __future__ import annotations

import atexit
import gc

from flows.orchestration import logs, patches
from flows.servers import environment


def configure() -> None:
    """Set what prefect, mlflow and torch read when they are imported, from the environment or as defaults; keep secrets
    out of logs; apply the patches of Prefect in a worker's flow run. Calling it twice changes nothing."""
    environment.configure()
    logs.configure()
    patches.apply()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # before it exits Python would search millions of objects for cycles: three seconds
