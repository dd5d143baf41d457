"""What the command line prints when a command ends early."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from flows import cli
from flows.cli import faults
from flows.orchestration import logs
from rlhf_lib.errors import DataError, GateFailed, ModelError, RLHFError
from rlhf_lib.rewards.function import function_reward

REWARD = """
def helper(text):
    return 1 / len(text)

def score(queries, responses):
    return [helper(text) for text in responses]
"""


@pytest.fixture
def details():
    """Off afterwards."""
    yield
    logs.details(False)


@pytest.fixture
def reward(tmp_path, monkeypatch):
    """A user's own reward, which fails on empty texts."""
    (tmp_path / "users_reward.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield function_reward("users_reward:score")
    del sys.modules["users_reward"]


def raised(function, *args) -> Exception:
    try:
        function(*args)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def wrapped(function, *args) -> None:
    try:
        function(*args)
    except Exception as error:
        raise ModelError("the reward failed") from error


@pytest.mark.parametrize(
    ("error", "status"), [(RLHFError("a is wrong: set b"), 2), (GateFailed("accuracy is 0.5"), 1), (DataError("x"), 2)]
)
def test_an_error_that_the_user_can_fix_is_one_line(error, status, capsys):
    assert faults.tell(error) == status
    assert capsys.readouterr() == ("", f"rlhf: error: {error}\n")


def test_an_error_in_the_users_own_code_shows_the_users_own_frames(reward, capsys):
    error = raised(reward, ["a"], [""])
    faults.tell(error)
    lines = capsys.readouterr().err.splitlines()
    shown = [line.strip() for line in lines if line.strip(" ~^")]
    file = sys.modules["users_reward"].__file__
    if not isinstance(error, RLHFError):  # which has words of its own
        assert shown[0] == "rlhf: error: ZeroDivisionError: division by zero, in your own code:"
    assert f'File "{file}", line 3, in helper' in shown
    assert "return 1 / len(text)" in shown
    assert not any("build.py" in line for line in shown)


def test_an_error_of_ours_shows_the_users_frames_of_its_cause(reward, capsys):
    faults.tell(raised(wrapped, sys.modules["users_reward"].helper, ""))
    printed = capsys.readouterr().err
    assert printed.splitlines()[0] == "rlhf: error: the reward failed"
    assert "in helper" in printed


GONE = partial({}.__getitem__, "gone")  # in the place of what lists the recipes


def test_an_unexpected_error_names_the_place_and_how_to_see_more(monkeypatch, capsys):
    monkeypatch.setattr("rlhf_lib.recipe.loading.shipped", GONE)
    assert cli.main(["show", "embedded"]) == 3
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"rlhf: error: KeyError: 'gone' \(in \w+, .*rlhf_lib/recipe/loading\.py:\d+\)", first)
    assert second == "rlhf: for the whole traceback run it again with --debug"


def test_debug_shows_the_traceback(monkeypatch, capsys, details):
    monkeypatch.setattr("rlhf_lib.recipe.loading.shipped", GONE)
    assert cli.main(["show", "embedded", "--debug"]) == 3
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed
    assert "--debug" not in printed


def test_secrets_stay_out_of_unexpected_errors(capsys):
    faults.tell(ValueError("can't open postgresql://me:hunter2@host/db"))
    assert "hunter2" not in capsys.readouterr().err


# ---------------------------------------------------------------- interrupted


def test_an_interruption_is_one_line_that_says_what_is_kept(capsys):
    error = KeyboardInterrupt()
    error.add_note("Stopped after step 31; the same command resumes at step 32")
    assert faults.tell_interrupted(error, signal.SIGINT) == 130
    assert capsys.readouterr().err == "rlhf: stopped after step 31; the same command resumes at step 32\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_whatever_a_signal_breaks_it_is_an_interruption(number, status, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as error:
            raise ImportError("half imported") from error  # as compiled modules do

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr("rlhf_lib.recipe.load_recipe", interrupted)
    try:
        assert cli.main(["show", "embedded"]) == status
    finally:
        for n, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(n, handler)
    assert capsys.readouterr().err == "rlhf: stopped\n"


@pytest.mark.parametrize("wait", [0.0, 0.5])
def test_ctrl_c_while_it_starts_is_one_line(tmp_path, wait):
    """In a process of its own, whenever the signal comes after its first sign of life: the run folder's check."""
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "flows.cli", "run", "embedded", "--run-dir", str(runs)]
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RLHF_RUN"))}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables, cwd=Path.cwd())
    while not runs.is_dir():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "rlhf: stopped\n"
    assert process.returncode == 130
