"""What is logged: of an error that the user can mend its message, once, without the traceback that would only bury it;
and no secrets, whoever logs."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

from rlhf_lib import errors
from rlhf_lib.credentials import redact
from rlhf_lib.errors import RLHFError

_NAMES = [f" {name}:" for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, RLHFError)]

_FORMATTER = logging.Formatter()


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


def cover_secrets() -> None:
    """Have every log record of this process made without secrets, before terminal, files or Prefect's API get it, and
    the traceback with which it may end."""
    before = logging.getLogRecordFactory()
    if getattr(before, "covers", False):
        return

    def covered(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        try:
            told = record.getMessage()
        except (TypeError, ValueError):  # arguments that don't fit: logging tells of that itself
            return record
        if (clean := redact(told)) != told:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None:
            trace = _FORMATTER.formatException(record.exc_info)
            if (clean := redact(trace)) != trace:
                record.exc_text = clean
        return record

    covered.covers = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(covered)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _tell


def _tell(*error: Any) -> None:
    """What Python prints of an error that nobody caught, without secrets."""
    sys.stderr.write(redact("".join(traceback.format_exception(*error))))


def calm() -> None:
    """Have Prefect's run logs tell mendable errors once, and no log any secret; after prefect is imported."""
    cover_secrets()
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Mendable) for f in logger.filters):
            logger.addFilter(_Mendable())
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.models.signature"):  # the making of tables, step by step
        logging.getLogger(name).setLevel(logging.WARNING)


def leave_to_caller() -> None:
    """Keep off the terminal what the command line prints itself, mendable errors and where to look (they stay in
    Prefect's own logs)."""

    def told_here(record: logging.LogRecord) -> bool:
        return getattr(record, "mendable", False) or str(record.msg).startswith("View at ")

    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not told_here(record))
