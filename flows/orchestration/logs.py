"""Logging: an error that the user can fix appears once, as one message without a traceback, and no secret appears at
all."""

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


class _ToldOnce(logging.Filter):
    """The task, the flow and the final state of each would otherwise repeat the error."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RLHFError):
            if getattr(error, "logged", False):
                return False
            error.logged = True  # type: ignore[attr-defined]
            record.msg, record.args, record.exc_info, record.exc_text = str(error), (), None, None
            record.told = True
        elif str(record.msg).startswith("Finished in state Failed(") and any(n in record.msg for n in _NAMES):
            record.msg = "Finished in state Failed"
        return True


def redact_logs() -> None:
    """Take secrets out of every log record of this process before the terminal, files or Prefect's API get it, and out
    of the traceback with which the process may end."""
    before = logging.getLogRecordFactory()
    if getattr(before, "redacts", False):
        return

    def redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that don't fit: logging reports that itself
            return record
        if (clean := redact(text)) != text:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None:
            trace = _FORMATTER.formatException(record.exc_info)
            if (clean := redact(trace)) != trace:
                record.exc_text = clean
        return record

    redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(redacted)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _tell


def _tell(*error: Any) -> None:
    """Print an uncaught error as Python does, without secrets."""
    sys.stderr.write(redact("".join(traceback.format_exception(*error))))


def configure() -> None:
    """Redact secrets, report errors that the user can fix once, and mute chatter. Calling it twice changes nothing."""
    redact_logs()
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _ToldOnce) for f in logger.filters):
            logger.addFilter(_ToldOnce())
    # the making of tables and of a model's signature, step by step
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.models.signature", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)


def leave_to_caller() -> None:
    """Keep off the terminal what the command line prints itself: errors that the user can fix, and where to look. Both
    stay in Prefect's own logs."""

    def told_here(record: logging.LogRecord) -> bool:
        return getattr(record, "told", False) or str(record.msg).startswith("View at ")

    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not told_here(record))
