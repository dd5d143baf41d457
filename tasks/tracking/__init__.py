"""What is recorded of a run, in MLflow and in the run folder."""

from __future__ import annotations

import logging

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger


def run_logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """Prefect's logger inside a flow or task run, else Python's own."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("rlhf")
