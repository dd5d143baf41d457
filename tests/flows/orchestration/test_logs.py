"""What of the log the terminal shows, and what goes to the file."""

from __future__ import annotations

import io
import logging

import pytest
from prefect.logging.handlers import PrefectConsoleHandler

from flows.orchestration import logs


@pytest.fixture
def terminal(tmp_path, monkeypatch):
    """Prefect's console handler alone on the root logger, as a command that runs a flow sets it up; what it prints."""
    monkeypatch.setenv("RLHF_RUN_DIR", str(tmp_path))
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = [PrefectConsoleHandler(io.StringIO())]
    root.setLevel(logging.INFO)

    def printed() -> list[str]:
        return [line.split("  ", 1)[-1] for line in root.handlers[0].stream.getvalue().splitlines()]

    yield printed
    logs.close_file()
    root.handlers[:] = before
    root.setLevel(level)


def emit(message: str, *args: object, level: int = logging.INFO, of_prefect: bool = False, **options) -> None:
    file = "/site-packages/prefect/flow_engine.py" if of_prefect else "/project/tasks/ppo.py"
    logger = logging.getLogger("prefect.task_runs")
    extra = dict.fromkeys(options.pop("marked", ()), True)
    logger.handle(logger.makeRecord(logger.name, level, file, 1, message, args, options.get("exc_info"), extra=extra))


def emit_all() -> None:
    emit("data: done in %.1f s", 1.25)
    emit("rows were lost", level=logging.WARNING)
    emit("the check failed", level=logging.ERROR, marked=["told"])
    emit("Beginning flow run 'x'", of_prefect=True)
    emit("Finished in state Failed('x')", level=logging.ERROR, of_prefect=True)
    emit("Task run failed with %s: %r - Retry %s/%s will start %s", "e", 1, 2, 3, "in 4 s", of_prefect=True)
    emit("a hook failed", level=logging.ERROR, of_prefect=True)
    for _ in range(2):  # by the task and by the flow
        emit("Encountered exception", level=logging.ERROR, of_prefect=True, exc_info=(ValueError, ERROR, None))


ERROR = ValueError("wrong")


def test_the_terminal_has_what_the_stages_say_and_the_file_everything(terminal, tmp_path):
    logs.configure()
    logs.leave_to_caller()
    emit_all()
    assert terminal() == [
        "data: done in 1.2 s",
        "warning: rows were lost",
        "Task run failed with e: 1 - Retry 2/3 will start in 4 s",
        "error: a hook failed",
    ]
    (file,) = (tmp_path / "logs").iterdir()
    text = file.read_text()
    assert all(part in text for part in ("Beginning flow run 'x'", "the check failed", "INFO prefect.task_runs: data"))
    assert text.count("ValueError: wrong") == 1
    assert "Failed('x')" not in text


def test_with_debug_the_terminal_has_all_of_it(terminal):
    logs.details(True)
    try:
        logs.leave_to_caller()
        emit("Beginning flow run 'x'", of_prefect=True)
    finally:
        logs.details(False)
    assert terminal() == ["Beginning flow run 'x'"]


def test_an_error_with_its_traceback_is_kept_in_the_file(terminal):
    logs.leave_to_caller()
    try:
        raise ValueError("the end")
    except ValueError as error:
        file = logs.keep_traceback(error)
    assert "Traceback (most recent call last)" in file.read_text()
    assert terminal() == []
    logs.close_file()
    assert logs.keep_traceback(ValueError()) is None


def test_old_files_are_removed(terminal, tmp_path):
    (tmp_path / "logs").mkdir()
    for number in range(logs.KEPT_LOGS + 3):
        (tmp_path / "logs" / f"20260101-{number:06}-1.log").touch()
    logs.leave_to_caller()
    emit("data: done")
    names = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert len(names) == logs.KEPT_LOGS
    assert names[0] == "20260101-000004-1.log"
