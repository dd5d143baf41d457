"""How the command line ends early: an error as one line with the user's own stack frames, Ctrl-C and SIGTERM as one
line that says what is kept."""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.orchestration import logs
from rlhf_lib.credentials import redact
from rlhf_lib.errors import GateFailed, RLHFError, notes

_ROOT = Path(__file__).parents[2]
_OURS = tuple(f"{_ROOT / package}{os.sep}" for package in ("flows", "tasks", "rlhf_lib"))
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_LONGEST = 500  # characters of an exception's own words


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM."""


class Signals:
    """Which signal has come: what is interrupted may raise whatever it likes, as half-imported modules do."""

    number = 0

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Inside the block the first SIGINT or SIGTERM raises Interrupted, and a second of the same ends the process at
        once. Changes nothing outside the main thread and for signals that are ignored."""

        def on_signal(number: int, _frame: Any) -> None:
            signal.signal(number, signal.SIG_DFL)
            self.number = number
            raise Interrupted

        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        before = {number: signal.getsignal(number) for number in numbers}
        for number, handler in before.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, on_signal)
        try:
            yield
        finally:
            if not self.number:  # else the process is about to end, and another Ctrl-C must end it at once
                for number, handler in before.items():
                    signal.signal(number, handler)


def tell_interrupted(error: BaseException, number: int) -> int:
    """Print what the interrupted command keeps; the exit status that shells know for the signal."""
    kept = next(iter(notes(error)), "stopped")
    print(f"{_end_of_line()}rlhf: {kept[:1].lower()}{kept[1:]}", file=sys.stderr)
    logs.keep_traceback(error)
    return 128 + (number or signal.SIGINT)


def tell(error: Exception) -> int:
    """Print the error, as a line and the user's own stack frames; the exit status: 2 for what the user can fix, 1 for a
    failed gate, 3 for anything else."""
    file = logs.keep_traceback(error)
    frames, known = own_frames(error), isinstance(error, RLHFError)
    if logs.details() and (known or not getattr(error, "logged", False)):  # of others the log has shown it
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr)
    place = ", in your own code:" if frames else _place(error)
    message = str(error) if known else f"{_summary(error)}{place}"
    if "\n" in message:  # it holds the user's own frames already
        frames = []
    print(f"rlhf: error: {message}", file=sys.stderr)
    for line in traceback.format_list(frames):
        print(redact(line), end="", file=sys.stderr)
    if not known and not logs.details():
        log = f"; the log is {_short(str(file))}" if file and file.is_file() else ""
        print(f"rlhf: for the whole traceback run it again with --debug{log}", file=sys.stderr)
    if isinstance(error, GateFailed):
        return 1
    return 2 if known else 3


def own_frames(error: BaseException | None) -> list[traceback.FrameSummary]:
    """The stack frames in the user's own files, the innermost last: those of the error, or of the one that led to it,
    which comes first where the error is ours."""
    if error is None:
        return []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    if isinstance(error, RLHFError):
        return own_frames(cause) or frames
    return frames or own_frames(cause)


def _is_own(file: str) -> bool:
    ours = file.startswith((*_OURS, *_LIBRARIES)) or "site-packages" in file
    return not ours and Path(file).is_file()  # compiled modules name files that aren't there


def _summary(error: Exception) -> str:
    """`ValueError: its message on one line`."""
    words = redact(" ".join(str(error).split()))
    name = type(error).__name__
    return f"{name}: {words[:_LONGEST]}{'...' if len(words) > _LONGEST else ''}" if words else name


def _place(error: Exception) -> str:
    """` (in FUNCTION, FILE:LINE)`: the innermost of the project's own frames, else the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    frame = next((frame for frame in reversed(frames) if frame.filename.startswith(_OURS)), frames[-1])
    return f" (in {frame.name}, {_short(frame.filename)}:{frame.lineno})"


def _short(file: str) -> str:
    """The path as seen from the working directory, where it lies in there."""
    return os.path.relpath(file) if Path(file).is_relative_to(Path.cwd()) else file


def _end_of_line() -> str:
    """Terminals show ^C where the cursor is."""
    return "\n" if sys.stderr.isatty() else ""
