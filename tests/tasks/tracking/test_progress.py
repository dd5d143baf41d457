"""What the terminal and the log show of a stage's progress."""

from __future__ import annotations

import io
import logging
from itertools import pairwise

import pytest
from prefect.logging.handlers import PrefectConsoleHandler
from rich.text import Text

from rlhf_lib.progress import note, report
from tasks.tracking import progress as progress_module
from tasks.tracking.progress import StageProgress, _LogLines, clock, showing

START = 1000.0


class Clock:
    now = START

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def test_the_line_names_step_metrics_and_times(time):
    line = StageProgress("ppo")
    assert str(line) == "ppo: 0:00"
    line.report("step", 0, 50, {})
    for step in range(1, 32):
        time.now += 2
        line.report("step", step, 50, {"reward": step / 8, "KL": 0.41})
    assert str(line) == "ppo: step 31 of 50, reward 3.875, KL 0.410, 1:02, about 0:38 left"
    time.now += 3
    line.note("stops after this step")
    assert str(line) == "ppo: step 31 of 50, reward 3.875, KL 0.410, 1:05, about 0:35 left, stops after this step"
    assert line.ended() == "ppo: 31 steps in 1:05, reward 3.875, KL 0.410"


def test_the_remaining_time_goes_by_the_recent_steps_and_not_by_an_earlier_run(time):
    line = StageProgress("ppo")
    for step in range(31):  # an earlier run's, told at once
        line.report("step", step, 100, {})
        line.begin_anew()
    assert line.remaining() is None
    for step in range(31, 61):
        time.now += 10 if step < 40 else 1
        line.report("step", step, 100, {})
    assert line.remaining() == 40


def test_other_work_begins_anew(time):
    line = StageProgress("evaluation")
    line.report("response", 0, 256, {})
    time.now += 60
    line.report("response", 256, 256, {})
    line.report("text", 10, 500, {})
    assert str(line) == "evaluation: text 10 of 500, 1:00"
    line.report("text", 2, 500, {})
    assert line.remaining() is None
    assert line.ended() == "evaluation: done in 1:00"


def test_reports_of_other_units_are_left_out_once_one_is_set(time):
    line = StageProgress("ppo")
    line.unit = "step"
    line.report("step", 3, 50, {})
    line.report("response", 128, 128, {})
    assert str(line) == "ppo: step 3 of 50, 0:00"


@pytest.mark.parametrize(("seconds", "told"), [(7.9, "0:07"), (754, "12:34"), (3723, "1:02:03")])
def test_clock(seconds, told):
    assert clock(seconds) == told


# ---------------------------------------------------------------- where there is no terminal


def lines_at(time: Clock, seconds: int, steps: int) -> list[float]:
    """When, in seconds from the start, a log line is due in a run of so many evenly spread steps."""
    time.now = START
    progress = StageProgress("ppo")
    lines, due = _LogLines(progress, logging.getLogger()), []
    for tick in range(2 * seconds):
        time.now = START + tick / 2
        progress.report("step", steps * tick // (2 * seconds), steps, {})
        if lines.due(time.now):
            due.append(tick / 2)
    return due


def test_a_short_stage_logs_its_quarters_and_a_long_one_is_no_flood(time):
    assert lines_at(time, 4, 100) == [2]
    assert lines_at(time, 40, 100) == [10, 20, 30]
    assert lines_at(time, 200, 100)[:4] == [30, 50, 80, 100]
    day = lines_at(time, 24 * 3600, 10_000)
    assert len(day) < 400
    assert max(after - before for before, after in pairwise(day)) <= 24 * 60 + 1


def test_a_long_step_is_not_silent(time):
    progress = StageProgress("ppo")
    lines = _LogLines(progress, logging.getLogger())
    progress.report("step", 3, 50, {})
    assert [at for at in range(100) if lines.due(START + at)] == [30, 60, 90]


def test_a_remark_is_logged_at_once(time):
    progress = StageProgress("ppo")
    lines = _LogLines(progress, logging.getLogger())
    progress.note("stops after this step")
    assert lines.due(START + 0.5)
    assert not lines.due(START + 1)


@pytest.fixture
def handler():
    """Prefect's console handler on the root logger, writing to a buffer."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = [PrefectConsoleHandler(io.StringIO())]
    root.setLevel(logging.INFO)
    yield root.handlers[0]
    root.handlers[:] = before
    root.setLevel(level)


def test_a_log_gets_the_last_line_of_a_stage(handler):
    with showing("base_model"):
        report("step", 1, 2, loss=1.5)
        report("step", 2, 2, loss=1.25)
    printed = handler.stream.getvalue()
    assert printed.startswith("base_model: 2 steps in ")
    assert printed.endswith("s, loss 1.250\n")
    report("step", 3, 2)  # which nobody hears


def test_a_stage_that_fails_has_no_last_line(handler):
    with pytest.raises(ValueError), showing("base_model"):
        raise ValueError
    assert handler.stream.getvalue() == ""


# ---------------------------------------------------------------- in a terminal


@pytest.mark.parametrize("width", [120, 60])
def test_a_terminal_has_a_live_line_below_the_log(handler, width, monkeypatch):
    monkeypatch.setattr(handler, "console", type(handler.console)(file=io.StringIO(), force_terminal=True, width=width))
    with showing("ppo"):
        report("step", 31, 50, reward=1.234, KL=0.41)
        logging.getLogger("rlhf").info("a line of the log")
        note("stops after this step")
    printed = handler.console.file.getvalue()
    above, last = printed.rsplit("\x1b[2K", 1)
    assert "a line of the log\n" in above
    assert "step 31 of" in above
    assert ("━" in above) == (width == 120)  # the bar, where there is room for it
    last = Text.from_ansi(last).plain.strip()
    assert last.startswith("ppo: 31 steps in ")
    assert last.endswith("reward 1.234, KL 0.410")
    assert printed.rindex("\x1b[?25h") > printed.rindex("\x1b[?25l")
    begun = printed.index("\x1b[?25l")
    assert "\x1b[?25h" in printed[begun : begun + 200]  # the cursor stays visible: a kill can't bring it back
