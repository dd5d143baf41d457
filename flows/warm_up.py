"""Importing what the stages need, and making MLflow's tables, while Prefect's server starts in a process of its own."""

from __future__ import annotations

import os
import threading

_thread: threading.Thread | None = None


def begin() -> None:
    """Import in the background: what an import raises the stages meet again, and tell."""
    global _thread
    _thread = threading.Thread(target=_import, name="warm-up", daemon=True)
    _thread.start()


def wait() -> None:
    """Return when all is imported: two threads that import the same modules can meet half of one."""
    if _thread is not None:
        _thread.join()


def _import() -> None:
    try:
        import mlflow

        if os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:"):
            mlflow.MlflowClient().search_experiments()

        from transformers import AutoModelForCausalLM, Trainer  # noqa: F401
        from trl import SFTTrainer  # noqa: F401
    except Exception:
        return
