"""A stage's progress: one live line in a terminal, a log line now and then anywhere else."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rlhf_lib.progress import listening
from tasks.tracking import run_logger

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

EVERY = 30.0  # seconds between log lines,
_SHARE = 60  # or this part of the time so far, where that is longer: a run of days must not flood the log
_QUARTERS = 4  # a log line at each quarter of the work too,
_APART = 2.0  # but not sooner than these seconds after the one before,
_PART = 8  # or than this part of the time so far
_LOOK = 0.5  # seconds between looks at whether a line is due
_RECENT = 20  # reports that the estimate of the remaining time goes by
_BAR = 24  # characters


class StageProgress:
    """How far a stage has come: `ppo: step 31 of 50, reward 1.234, KL 0.410, 0:23, about 0:14 left`.

    It listens to what the library reports. `unit`: reports of other units are left out once this is set.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.unit: str | None = None
        self.shown = ""  # unit of the last report
        self.steps = ""  # how many there were, and their metrics
        self.done = 0
        self.total: int | None = None
        self.metrics: dict[str, float] = {}
        self.remark = ""
        self.start = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self._spinner = Spinner("dots", style="cyan")

    # ------------------------------------------------------------ what it is told

    def report(self, unit: str, done: int, total: int | None, metrics: Mapping[str, float]) -> None:
        if self.unit not in (None, unit):
            return
        if unit != self.shown or done < self.done:  # other work has begun
            self._recent.clear()
            self.metrics = {}
        self.shown, self.done, self.total = unit, done, total
        self.metrics = {**self.metrics, **metrics}  # never changed in place: other threads read it
        self._recent.append((time.monotonic(), done))
        if unit == "step":
            self.steps = f"{done} steps in {{took}}{''.join(f', {part}' for part in self._metrics())}"

    def note(self, text: str) -> None:
        self.remark = text

    def begin_anew(self) -> None:
        """Estimate the remaining time from here on alone: what was reported so far was done in an earlier run."""
        self._recent.clear()
        self._recent.append((time.monotonic(), self.done))

    # ------------------------------------------------------------ what it says

    def remaining(self) -> float | None:
        """Seconds that the rest will take at the present speed; None where that can't be told."""
        recent = list(self._recent)
        if self.total is None or self.done >= self.total or not recent:
            return None
        (first, before), (last, done) = recent[0], recent[-1]
        if done <= before:
            return None
        return max(0.0, (last - first) / (done - before) * (self.total - done) - (time.monotonic() - last))

    def parts(self) -> dict[str, str]:
        """The line's parts by name: work, metrics, time, remark. Those with nothing to say are empty."""
        work = ""
        if self.shown:
            work = f"{self.shown} {self.done}" + (f" of {self.total}" if self.total is not None else "")
        elapsed, left = clock(time.monotonic() - self.start), self.remaining()
        return {
            "work": work,
            "metrics": ", ".join(self._metrics()),
            "time": f"{elapsed}, about {clock(left)} left" if left is not None else elapsed,
            "remark": self.remark,
        }

    def _metrics(self) -> list[str]:
        return [f"{name} {value:.3f}" for name, value in self.metrics.items()]

    def __str__(self) -> str:
        return f"{self.stage}: {', '.join(part for part in self.parts().values() if part)}"

    def ended(self) -> str:
        """The line that stays: the time it took, and a training's steps and last metrics."""
        seconds = time.monotonic() - self.start
        took = f"{seconds:.1f} s" if seconds < 60 else clock(seconds)
        return f"{self.stage}: {self.steps.format(took=took) or f'done in {took}'}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = self.parts()
        styles = {"work": "", "metrics": "cyan", "time": "grey50", "remark": "yellow3"}
        told = [Text(parts[name], style) for name, style in styles.items() if parts[name]]
        cells: list[RenderableType] = [self._spinner, Text(self.stage, "bold"), *told]
        room = options.max_width - len(self.stage) - sum(len(part) + 1 for part in told) - 4
        if self.total and room > _BAR:
            cells.insert(2, ProgressBar(self.total, self.done, _BAR, False, "grey35", "cyan", "green"))
        line = Table.grid(padding=(0, 1))
        for _ in cells:
            line.add_column(no_wrap=True)
        line.add_row(*cells)
        yield line


def clock(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def showing(stage: str) -> Iterator[StageProgress]:
    """Inside the block the stage's progress is shown as it is reported; one line with its time stays when it is done.

    In a terminal that is a line at the bottom, above which the log runs on; elsewhere it is a log line now and then.
    """
    progress, logger = StageProgress(stage), run_logger()
    with listening(progress), _live(progress) or _LogLines(progress, logger):
        yield progress
    logger.info("%s", progress.ended())


def _live(progress: StageProgress) -> AbstractContextManager[object] | None:
    """The live line; None where the log doesn't go to a terminal."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, PrefectConsoleHandler)]
    console = handlers[0].console if handlers else Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # one line for each model that is loaded
    return _LiveLine(
        progress,
        console=console,
        refresh_per_second=4,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        vertical_overflow="crop",
    )


class _LiveLine(Live):
    """A live display that leaves the cursor visible: a process that is killed can't bring it back."""

    def start(self, refresh: bool = False) -> None:
        super().start(refresh)
        self.console.show_cursor(True)


class _LogLines(threading.Thread):
    """Logs the progress every so often, from a thread of its own: also in the middle of a long step."""

    def __init__(self, progress: StageProgress, logger: Logger) -> None:
        super().__init__(name="progress", daemon=True)
        self.progress, self.logger = progress, logger
        self.ended = threading.Event()
        self.last, self.quarter, self.remark = progress.start, 0, ""

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    def run(self) -> None:
        while not self.ended.wait(_LOOK):
            if self.due(time.monotonic()):
                self.logger.info("%s", self.progress)

    def due(self, now: float) -> bool:
        """Whether it is time for a line; what is due is taken as logged."""
        progress = self.progress
        quarter = _QUARTERS * progress.done // progress.total if progress.total else 0
        apart = max(EVERY, (now - progress.start) / _SHARE)
        soon = max(_APART, (now - progress.start) / _PART)
        begun = quarter > self.quarter and quarter < _QUARTERS and now - self.last >= soon
        due = now - self.last >= apart or begun or progress.remark != self.remark
        self.quarter, self.remark = quarter, progress.remark
        if due:
            self.last = now
        return due
