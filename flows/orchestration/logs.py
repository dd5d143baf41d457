"""Logging: an error that the user can fix appears once, as one message without a traceback, and no secret appears at
all."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf_lib.credentials import redact
from rlhf_lib.errors import RLHFError

_FORMATTER = logging.Formatter()
_FAILED = re.compile(r"Finished in state (Failed|Crashed)\(")
_PREFECT = f"{os.sep}prefect{os.sep}"
_UNFINISHED = ("Finished in state", "Encountered exception", "Crash detected", "Task run failed with exception")
KEPT_LOGS = 50  # of the command line's, in RUN_DIR/logs


class _ToldOnce(logging.Filter):
    """The task, the flow and the final state of each would otherwise repeat the error."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            if getattr(error, "logged", False):
                return False
            with suppress(AttributeError):  # some take no attributes
                error.logged = True  # type: ignore[attr-defined]
            if isinstance(error, RLHFError):
                record.msg, record.args, record.exc_info, record.exc_text = str(error), (), None, None
            record.told = True
        elif found := _FAILED.match(str(record.msg)):
            record.msg = f"Finished in state {found[1]}"
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
    logging.getLogger("datasets.packaged_modules.json.json").setLevel(logging.CRITICAL)  # it raises what it logs


def leave_to_caller() -> None:
    """For a command that runs a flow: keep the terminal to what the stages say, since the command itself prints errors
    and results, and the whole log, Prefect's lines included, in a file of RUN_DIR/logs. With `--debug` the terminal
    has it too."""
    from prefect.logging.handlers import PrefectConsoleHandler

    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, PrefectConsoleHandler) and not details():
            handler.addFilter(_of_stages)
            handler.setFormatter(_Short())
    close_file()
    with suppress(OSError):  # of a run folder that can't be written, which the flow says itself
        root.addHandler(_to_file())


def close_file() -> None:
    """Close the log file that `leave_to_caller` opened, if it did."""
    if (handler := _log_file()) is not None:
        logging.getLogger().removeHandler(handler)
        handler.close()


def details(wanted: bool | None = None) -> bool:
    """Whether the command line was given `--debug`; set to `wanted` unless that is None."""
    global _details
    if wanted is not None:
        _details = wanted
    return _details


_details = False


def keep_traceback(error: BaseException) -> Path | None:
    """Write the error with its traceback to the log file, if there is one, and return the file."""
    handler = _log_file()
    if handler is None:
        return None
    trace = (type(error), error, error.__traceback__)
    handler.handle(logging.getLogger("rlhf").makeRecord("rlhf", logging.ERROR, __file__, 0, "ended by", (), trace))
    return Path(handler.baseFilename)


def _of_stages(record: logging.LogRecord) -> bool:
    """Whether the terminal shows the record: what the stages say, warnings, and what Prefect tries again."""
    if getattr(record, "told", False):
        return False
    if _PREFECT not in record.pathname:
        return True
    text = str(record.msg)
    return "Retry %s" in text or (record.levelno >= logging.WARNING and not text.startswith(_UNFINISHED))


class _Short(logging.Formatter):
    """`23:05:01  data: done in 1.2 s`; other levels than INFO are named, tracebacks are left to the file."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{self.formatTime(record, '%H:%M:%S')}  {level}{record.getMessage()}"


def _to_file() -> logging.FileHandler:
    from flows.servers.environment import run_dir

    folder = run_dir() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("*.log"))[: -KEPT_LOGS + 1]:
        old.unlink(missing_ok=True)
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    handler = logging.FileHandler(folder / name, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _log_file() -> logging.FileHandler | None:
    return next((handler for handler in logging.getLogger().handlers if type(handler) is logging.FileHandler), None)
