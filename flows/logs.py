"""What Prefect logs of an error that the user can mend: its message, once. No traceback, which would only bury it."""

from __future__ import annotations

import logging

from rlhf_lib import errors
from rlhf_lib.errors import RLHFError

_NAMES = [f" {name}:" for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, RLHFError)]


class _Mendable(logging.Filter):
    """Task, flow, and the final state of either would each tell it again."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RLHFError):
            if getattr(error, "logged", False):
                return False
            error.logged = True  # type: ignore[attr-defined]
            record.msg, record.args, record.exc_info, record.exc_text = str(error), (), None, None
            record.mendable = True
        elif str(record.msg).startswith("Finished in state Failed(") and any(n in record.msg for n in _NAMES):
            record.msg = "Finished in state Failed"
        return True


def calm() -> None:
    """Have Prefect's run logs tell mendable errors once; to be called after prefect is imported."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Mendable) for f in logger.filters):
            logger.addFilter(_Mendable())


def leave_to_caller() -> None:
    """Keep mendable errors off the terminal too (they stay in Prefect's own logs): the command line prints them."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not getattr(record, "mendable", False))
