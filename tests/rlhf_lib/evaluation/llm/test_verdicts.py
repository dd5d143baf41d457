"""Verdicts on disk, and budgets, with threads and processes at once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlhf_lib.errors import JudgeFailed
from rlhf_lib.evaluation.llm.verdicts import Verdicts, question_key

TAKE = """
import sys
from pathlib import Path
from rlhf_lib.evaluation.llm.verdicts import Verdicts
verdicts = Verdicts(Path(sys.argv[1]))
print(sum(verdicts.take("run/j", 1, 50) for _ in range(40)))
"""


def test_the_first_verdict_stays_and_is_there_for_the_next(tmp_path):
    verdicts = Verdicts(tmp_path / "new" / "v.sqlite")
    assert verdicts.get("q") is None
    verdicts.put("q", "A", "[[A]]")
    verdicts.put("q", "B", "[[B]]")
    assert Verdicts(tmp_path / "new" / "v.sqlite").get("q") == "A"


def test_a_budget_is_each_purse_s_own_and_can_be_given_back(tmp_path):
    verdicts = Verdicts(tmp_path / "v.sqlite")
    assert [verdicts.take("a", 2, 5) for _ in range(3)] == [True, True, False]
    assert verdicts.take("b", 2, 5)
    assert verdicts.take("a", -2, 5)
    assert (verdicts.spent("a"), verdicts.spent("b"), verdicts.spent("c")) == (2, 2, 0)


def test_no_budget_is_overspent_by_processes_or_threads_at_once(tmp_path):
    file = tmp_path / "v.sqlite"
    Verdicts(file)
    command = [sys.executable, "-c", TAKE, str(file)]
    with ThreadPoolExecutor(2) as pool:
        printed = pool.map(lambda _: subprocess.run(command, capture_output=True, text=True, check=True), range(2))
    assert sum(int(done.stdout) for done in printed) == 50
    verdicts = Verdicts(file)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: verdicts.take("threads", 3, 100), range(60))) == 33


def test_a_file_that_is_none_is_told(tmp_path):
    (tmp_path / "v.sqlite").write_text("no database, and long enough to be looked at as one " * 20)
    with pytest.raises(
        JudgeFailed, match=r"v\.sqlite can't be read or written \(file is not a database\): .* remove it"
    ):
        Verdicts(tmp_path / "v.sqlite")


def test_a_question_s_key_depends_on_each_part():
    keys = {question_key(**parts) for parts in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 1}, {"a": 1})}
    assert len(keys) == 3
