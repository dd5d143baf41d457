"""What is recorded of a run, in MLflow and in the run folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

if TYPE_CHECKING:
    from rlhf_lib.data.losses import Loss


def run_logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """Prefect's logger inside a flow or task run, else Python's own."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("rlhf")


def tell_losses(stage: str, losses: Iterable[Loss]) -> None:
    """A line in the run's log for each thing lost, as a warning where it should worry people."""
    for loss in losses:
        run_logger().log(logging.WARNING if loss.worrying else logging.INFO, "%s: %s", stage, loss)
