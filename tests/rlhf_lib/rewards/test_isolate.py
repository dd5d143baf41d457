"""Isolated reward functions: what they can't reach, what ends them, and that the next answer doesn't notice."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rlhf_lib.conversation import Conversation, user
from rlhf_lib.errors import DataError, ModelError, RecipeError, RewardFailed
from rlhf_lib.recipe import RewardConfig
from rlhf_lib.recipe.reward import IsolateConfig
from rlhf_lib.rewards import sampled_scores, timeouts, worker
from rlhf_lib.rewards.build import build_reward
from rlhf_lib.rewards.function import function_reward
from rlhf_lib.rewards.isolate import IsolatedFunction, Process

MODULE = """
import os, socket, subprocess, sys, time
calls = []
SLEEP = "import time; time.sleep(600)"

def reward(completions, solution=None, **kwargs):
    calls.append(completions)
    return [score(said, None if solution is None else solution[i]) for i, said in enumerate(completions)]

def score(said, solution):
    said = said[0]["content"] if isinstance(said, list) else said
    return DEEDS[said](solution) if said in DEEDS else float(len(said))

def endless(_):
    while True:
        pass

def hog(_):
    taken = []
    while True:
        taken.append(bytearray(2**26))

def child(_):
    return float(subprocess.Popen([sys.executable, "-c", SLEEP]).pid)

def grandchild(_):
    starts = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}])"
    subprocess.run([sys.executable, "-c", starts])
    return 0.5

def endless_with_child(_):
    child(_)
    endless(_)

def dial(_):
    socket.create_connection(("127.0.0.1", PORT), timeout=2).close()
    return 1.0

def spied(_):
    return float("SECRET" in open(f"/proc/{PARENT}/environ").read())

DEEDS = {
    "calls": lambda _: float(len(calls)),
    "endless": endless,
    "hog": hog,
    "child": child,
    "grandchild": grandchild,
    "endless with child": endless_with_child,
    "exit": lambda _: os._exit(0),
    "dial": dial,
    "spy": spied,
    "solution": float,
    "nothing": lambda _: None,
    "word": lambda _: "good",
    "raise": lambda _: {}["missing"],
    "print": lambda _: print("hello", file=sys.stdout) or 1.0,
    "secrets": lambda _: float(any("SECRET" in name or "hf_" in value for name, value in os.environ.items())),
    "variables": lambda _: float(len(os.environ)),
    "files": lambda _: float(len(os.listdir("."))) + (open("left", "w").write("x") and 0.0),
}

def told(queries, responses):
    return [float(len(query)) for query in queries]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"deeds_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE + f"\nPARENT = {os.getpid()}\nPORT = 9\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MY_SECRET", "not for answers")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 20)
    return name


@pytest.fixture
def make(module: str) -> Iterator:
    made: list[IsolatedFunction] = []

    def build(function: str = "reward", **settings) -> IsolatedFunction:
        reward = build_reward(RewardConfig(kind="function", function=f"{module}:{function}", isolate=settings or True))
        assert isinstance(reward, IsolatedFunction)
        made.append(reward)
        return reward

    yield build
    for reward in made:
        if reward.process:
            reward.process.end()


def score(reward, *answers: str, **columns) -> list[float]:
    return sampled_scores(reward, ["q"] * len(answers), list(answers), columns=columns)


def sleepers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if "import time; time.sleep(600)" in (p.info["cmdline"] or [])]


def test_it_scores_as_in_the_own_process(make, module):
    reward, direct = make(), function_reward(f"{module}:reward")
    for one in (reward, direct):
        assert score(one, "abc", "", "solution", solution=["1", "2", "3.5"]) == [3.0, 0.0, 3.5]
        assert sampled_scores(one, [Conversation([user("Hi")])], ["four"]) == [4.0]
        assert one(["q"], ["nothing"]) == [None]
        with pytest.raises(ModelError, match=r"gave None for the query 'q' with the response 'nothing'.*term of a sum"):
            score(one, "nothing")
        with pytest.raises(ModelError, match=f"function {module}:reward gave .*good.*must be a finite number"):
            score(one, "word")
        with pytest.raises(
            RewardFailed, match=rf"reward.function {module}:reward raised KeyError: 'missing'\n.*{module}"
        ):
            score(one, "raise")
    assert sampled_scores(make("told"), [Conversation([user("Hi")])], ["x"]) == [len("\n\nHuman: Hi\n\nAssistant:")]
    assert score(reward, "print") == [1.0]
    assert timeouts(reward) == 0
    assert timeouts(direct) is None


def test_an_endless_answer_costs_itself_alone(make, caplog):
    reward = make(seconds=1.0, timeout_score=-1.0)
    assert score(reward, "a", "calls") == [1.0, 2.0]
    with caplog.at_level(logging.WARNING):
        assert score(reward, "ab", "endless", "calls", "abcd") == [2.0, -1.0, 1.0, 4.0]  # a fresh process counts anew
    assert reward.timeouts == 1
    assert "1 of 4 answers took more than 1 s or 2048 MB, or ended its process: they score -1" in caplog.text


def test_so_do_one_that_takes_all_memory_and_one_that_ends_the_process(make):
    reward = make(memory_mb=300)
    assert score(reward, "hog", "abc", "exit", "calls") == [0.0, 3.0, 0.0, 1.0]
    assert reward.timeouts == 2


@pytest.mark.parametrize("network", [False, True])
def test_what_an_answer_leaves_behind_is_gone(make, network):
    reward = make(seconds=1.5, network=network)
    assert score(reward, "child")[0] > 0
    assert score(reward, "grandchild") == [0.5]
    assert not sleepers()
    assert score(reward, "endless with child", "calls") == [0.0, 1.0]
    assert not sleepers()


def test_without_namespaces_the_keeper_ends_what_is_left(make, monkeypatch, tmp_path):
    """As on a machine that has none: the worker's own check of them is made to fail."""
    lacking = tmp_path / "sitecustomize.py"
    lacking.write_text("import ctypes\nctypes.CDLL = lambda *_, c=ctypes.CDLL, **k: Lacking(c(*_, **k))\n" + LACKING)
    reward = make(network=True, seconds=1.0)
    assert score(reward, "child")[0] > 10  # a number of this machine's, not of a namespace
    assert score(reward, "grandchild", "endless with child", "calls") == [0.5, 0.0, 1.0]
    assert not sleepers()
    with pytest.raises(
        RecipeError, match=r"namespaces of their own \(Operation not permitted\).*isolate.network to true"
    ):
        score(make(), "a")


LACKING = """
class Lacking:
    def __init__(self, libc):
        self.prctl = libc.prctl
    def unshare(self, flags):
        ctypes.set_errno(1)
        return -1
"""


def test_it_has_neither_network_nor_secrets_nor_files(make):
    reward = make()
    with pytest.raises(RewardFailed, match=r"raised OSError.*Network is unreachable"):
        score(reward, "dial")
    assert score(reward, "secrets") == [0.0]
    assert score(reward, "variables")[0] < 20
    assert score(reward, "files") == [0.0]
    with pytest.raises(RewardFailed, match=r"raised PermissionError.*/environ"):
        score(reward, "spy")


def test_with_network_the_machine_is_reached(make):
    with pytest.raises(RewardFailed, match="raised ConnectionRefusedError"):
        score(make(network=True), "dial")


def test_it_ends_with_its_owner(module, tmp_path):
    process = Process(f"{module}:reward", IsolateConfig())
    (keeper,) = (p for p in psutil.Process().children() if worker.__name__ in p.cmdline())
    family = [keeper, *keeper.children(recursive=True)]
    assert len(family) == 2
    folder = Path(keeper.cwd())
    assert folder.is_dir()
    del process  # as when the reward is
    assert not any(p.is_running() for p in family)
    assert not folder.exists()


def test_as_a_term_it_is_counted_with_the_sum(make, module):
    own = {"kind": "function", "function": f"{module}:reward", "isolate": {"seconds": 1.0, "timeout_score": 5}}
    length = {"kind": "function", "function": f"{module}:told"}
    terms = [{"weight": 2, "reward": own}, {"weight": 10, "reward": length}]
    reward = build_reward(RewardConfig.model_validate({"kind": "sum", "terms": terms}))
    assert score(reward, "abc", "endless", "nothing") == [2 * 3 + 10, 2 * 5 + 10, 10]
    assert timeouts(reward) == 1


def test_a_module_that_needs_a_secret_tells_so(tmp_path, monkeypatch):
    (tmp_path / "needs_token.py").write_text(
        "import os\nTOKEN = os.environ['MY_SECRET']\ndef f(completions): return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MY_SECRET", "x")
    with pytest.raises(RewardFailed, match=r"importing needs_token raised KeyError: 'MY_SECRET'"):
        score(function_reward("needs_token:f", IsolateConfig()), "a")


def test_a_column_that_json_cannot_hold_is_refused(make):
    with pytest.raises(
        DataError, match=r"the column solution holds \{1\}, which can't be passed.*data.prompts.columns"
    ):
        score(make(), "solution", solution=[{1}])


def test_a_section_that_isolates_no_function_is_refused():
    assert RewardConfig(kind="function", function="a:b", isolate=True).isolate == IsolateConfig()
    assert RewardConfig(kind="function", function="a:b", isolate=False).isolate is None
    with pytest.raises(ValueError, match="isolate is for kind function, not classifier"):
        RewardConfig(kind="classifier", model="x", isolate=True)


def test_a_start_costs_no_framework(make):
    """A fresh process after every bad answer must not import what the function doesn't."""
    reward = make()
    started = time.perf_counter()
    score(reward, "a")
    assert time.perf_counter() - started < 5
    (keeper,) = (p for p in psutil.Process().children() if worker.__name__ in p.cmdline())
    (child,) = keeper.children()
    mapped = Path(f"/proc/{child.pid}/maps").read_text()
    assert "python" in mapped
    assert "libtorch" not in mapped
