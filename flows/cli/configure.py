"""What has to be set before anything else is imported: called by the `rlhf` command and by the worker's entry."""

from __future__ import annotations

import atexit
import gc

from flows.orchestration import logs, patches
from flows.servers import environment


def configure() -> None:
    """Settings from the environment or their defaults, logs without secrets, and in a worker's flow run the patches of
    Prefect. To be called before prefect, mlflow or torch are imported, which read their settings then; a second call
    changes nothing."""
    environment.configure()
    logs.configure()
    patches.apply()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # before it exits Python would search millions of objects for cycles: three seconds
