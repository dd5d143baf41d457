"""PPO killed at random moments, ended by signals, diverged or out of memory: what is lost, and how it goes on."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ppo_worker import CHECKPOINT_EVERY, PHASES, STEPS
from prefect.exceptions import TerminationSignal
from prefect.utilities.engine import capture_sigterm
from safetensors.torch import load_file
from tiny_models import given_responses, one_thread, remainder_reward, same, tiny_trainer, weights  # noqa: F401

from rlhf_lib.ppo.checkpoint import checkpoints, resume, save_checkpoint
from rlhf_lib.ppo.faults import Diverged, OutOfMemory
from rlhf_lib.ppo.interrupt import stop_at_boundary
from rlhf_lib.recipe import PPOConfig

KILLS = 12


class Worker:
    """The process that forks runs."""

    def __init__(self) -> None:
        root = Path(__file__).parents[3]
        folder = root / "tests" / "support"
        paths = os.pathsep.join([str(root), str(folder)])
        self.process = subprocess.Popen(
            [sys.executable, "ppo_worker.py"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, on_phase: Callable[[int, str, int], None] = lambda *_: None) -> tuple[int, str, int]:
        """Exit status, and the phase and step that the run was in at its end. `on_phase` gets pid, phase and step."""
        folder.mkdir(exist_ok=True)
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        pid, pending, phase, step = 0, [], "start", -1
        for line in self.process.stdout:
            kind, *rest = line.split()
            if kind == "exit":
                return int(rest[0]), phase, step
            if kind == "pid":
                pid = int(rest[0])
            elif kind == "phase":
                phase, step = rest[0], int(rest[1])
                pending.append((phase, step))
            else:
                raise AssertionError(line)
            while pid and pending:
                on_phase(pid, *pending.pop(0))
        raise AssertionError("the worker is gone")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.process.stdin.close()
    worker.process.wait(timeout=60)


def outcome(folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    history = json.loads((folder / "history.json").read_text())
    kept = [{n: v for n, v in stats.items() if not n.startswith("time/")} for stats in history]
    return kept, load_file(folder / "policy.safetensors")


@pytest.fixture(scope="module")
def expected(worker, tmp_path_factory):
    """History and weights of an uninterrupted run; two of them are equal, else nothing below would mean anything."""
    folders = [tmp_path_factory.mktemp("whole") for _ in range(2)]
    for folder in folders:
        assert worker.run(folder)[0] == 0
    first, second = map(outcome, folders)
    assert len(first[0]) == STEPS
    assert first[0] == second[0]
    assert same(first[1], second[1])
    return first


def equals(folder: Path, expected) -> bool:
    history, learnt = outcome(folder)
    return history == expected[0] and same(learnt, expected[1])


# ---------------------------------------------------------------- SIGKILL


def killer(target: str, wait: int, after: float) -> Callable[[int, str, int], None]:
    """Kills the run `after` seconds into phase `target`, having let `wait` of them pass."""
    seen: list[int] = []

    def kill(pid: int, phase: str, step: int) -> None:
        if phase == target:
            seen.append(step)
            if len(seen) > wait:
                time.sleep(after)
                os.kill(pid, signal.SIGKILL)

    return kill


def test_a_run_killed_in_every_phase_ends_as_if_it_had_not_been(worker, expected, tmp_path):
    draw = random.Random(0)
    hits: Counter[str] = Counter()
    while sum(hits.values()) < KILLS or not set(PHASES) <= hits.keys():
        missing = [phase for phase in PHASES if phase not in hits] or list(PHASES)
        target, wait, after = draw.choice(missing), draw.choice([0, 1, 2]), draw.uniform(0, 0.008)
        status, phase, step = worker.run(tmp_path, killer(target, wait, after))
        assert status == -signal.SIGKILL, f"the run came to its end after {sum(hits.values())} kills: {hits}"
        hits[phase] += 1
        print(f"kill {sum(hits.values())}: {phase} of step {step}, {1000 * after:.1f} ms after {target} began")
    print(dict(hits))
    assert worker.run(tmp_path)[0] == 0
    assert equals(tmp_path, expected)


# ---------------------------------------------------------------- SIGTERM and SIGINT


@pytest.mark.parametrize(
    ("number", "phase", "boundary"),
    [
        (signal.SIGTERM, "rollout", 5),
        (signal.SIGINT, "score", 5),
        (signal.SIGTERM, "forward", 6),
        (signal.SIGINT, "update", 6),
    ],
)
def test_a_signal_keeps_the_last_completed_step(worker, expected, tmp_path, number, phase, boundary):
    """Step 5 is abandoned while it samples and scores, and finished once it learns; neither is a checkpoint's turn."""

    sent: list[int] = []

    def send(pid: int, begun: str, step: int) -> None:
        if (begun, step) == (phase, 5) and not sent:
            sent.append(number)
            os.kill(pid, number)

    status, ended_in, step = worker.run(tmp_path, send)
    assert status == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert (ended_in, step) == ("checkpoint", boundary)
    assert checkpoints(tmp_path)[0].name == f"step-{boundary:06d}"
    assert 5 % CHECKPOINT_EVERY
    assert worker.run(tmp_path)[0] == 0
    assert equals(tmp_path, expected)


def test_a_second_sigint_ends_the_process_in_mid_step(worker, expected, tmp_path):
    seen: list[str] = []

    def send(pid: int, begun: str, step: int) -> None:
        if (begun, step) == ("update", 5):  # its first update, and its second
            seen.append(begun)
            os.kill(pid, signal.SIGINT)

    status, ended_in, step = worker.run(tmp_path, send)
    assert (status, ended_in, step) == (-signal.SIGINT, "update", 5)
    assert len(seen) == 2
    assert checkpoints(tmp_path)[0].name == "step-000004"
    assert worker.run(tmp_path)[0] == 0
    assert equals(tmp_path, expected)


@pytest.fixture
def outer_handler():
    """SIGTERM noted rather than obeyed, as the handler that was there before."""
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    yield noted
    signal.signal(signal.SIGTERM, before)


def terminating_reward(queries: list[str], responses: list[str]) -> list[float]:
    os.kill(os.getpid(), signal.SIGTERM)
    return remainder_reward(queries, responses)


def test_the_handler_before_has_the_signal_after_the_boundary_is_kept(outer_handler):
    trainer, before = tiny_trainer(reward=terminating_reward), signal.getsignal(signal.SIGTERM)
    start, saved = weights(trainer.policy), []
    with pytest.raises(SystemExit) as ending, stop_at_boundary(trainer, lambda: saved.append(list(outer_handler))):
        list(trainer.train())
    assert ending.value.code == 143
    assert saved == [[]]  # once, and before the signal went on
    assert outer_handler == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before
    assert trainer.step == 0
    assert same(weights(trainer.policy), start)


def test_prefect_still_ends_its_run(outer_handler):
    """As a crash or a cancellation, which it tells apart itself."""
    trainer, saved = tiny_trainer(reward=terminating_reward), []
    with (
        pytest.raises(TerminationSignal),
        capture_sigterm(),
        stop_at_boundary(trainer, lambda: saved.append(trainer.step)),
    ):
        list(trainer.train())
    assert saved == [0]
    assert outer_handler == [signal.SIGTERM]


def test_a_run_that_ends_of_itself_leaves_signals_alone(outer_handler):
    before, saved = signal.getsignal(signal.SIGTERM), []
    trainer = tiny_trainer(steps=1)
    with stop_at_boundary(trainer, lambda: saved.append(1)):
        list(trainer.train())
    assert signal.getsignal(signal.SIGTERM) is before
    assert not saved


def test_an_error_of_the_reward_keeps_the_steps_before_it(tmp_path):
    calls: list[int] = []

    def failing(queries: list[str], responses: list[str]) -> list[float]:
        calls.append(len(calls))
        return remainder_reward(queries, responses) if len(calls) < 3 else []

    trainer, saved = tiny_trainer(reward=failing), []
    state = torch.get_rng_state()
    with pytest.raises(Exception, match="0 scores"), stop_at_boundary(trainer, lambda: saved.append(trainer.step)):
        list(trainer.train())
    assert saved == [2]
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_while_it_learns_saves_nothing():
    trainer, saved = tiny_trainer(), []
    trainer.policy.model.transformer.ln_f.bias.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(Diverged), stop_at_boundary(trainer, lambda: saved.append(trainer.step)):
        list(trainer.train())
    assert not saved


def test_outside_the_main_thread_nothing_is_installed(outer_handler):
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stop_at_boundary(tiny_trainer(), lambda: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


# ---------------------------------------------------------------- a threshold reached, then killed


def test_a_run_that_reached_its_threshold_stays_ended(tmp_path):
    options = {"reward": lambda queries, responses: [1.0] * len(queries), "stop_at_reward": 1.0}
    trainer = tiny_trainer(**options)
    history = list(trainer.train())
    assert len(history) == 1
    save_checkpoint(trainer, tmp_path, key="k", history=history)
    again = tiny_trainer(**options)
    assert resume(again, tmp_path, key="k") == history
    assert list(again.train()) == []


# ---------------------------------------------------------------- no number, no memory


def test_divergence_names_its_rows_and_changes_no_weight():
    trainer = tiny_trainer(mini_batch_size=4)
    trainer.train_step()
    before = weights(trainer.policy)
    norm = trainer.policy.model.transformer.ln_f.bias
    handle = norm.register_hook(lambda gradient: gradient * float("nan"))
    order = trainer.minibatch_order(0, 8)[:4].tolist()
    with pytest.raises(
        Diverged, match=rf"diverged at step 1: .* norm nan, in rows {re.escape(str(order))} of"
    ) as error:
        trainer.train_step()
    assert same(weights(trainer.policy), before)
    assert trainer.step == 1
    queries = [row["input_ids"] for row in trainer._next_rows()]
    assert [row["query_ids"] for row in error.value.rows] == [queries[i] for i in order]
    assert all(len(row["response_ids"]) <= len(row["old_logprobs"]) for row in error.value.rows)
    json.dumps(error.value.rows)
    handle.remove()
    trainer.train_step()  # and the run could go on


@pytest.mark.parametrize("learning", [False, True], ids=["scoring", "update"])
def test_out_of_memory_names_the_micro_batch_to_try(learning):
    trainer = tiny_trainer(old_logprobs="recompute", micro_batch_tokens=5)

    def exhaust(*_) -> None:
        if torch.is_grad_enabled() == learning:
            torch.empty(2**55)  # the allocator's own error

    trainer.policy.model.transformer.h[0].register_forward_pre_hook(exhaust)
    responses = given_responses([[5, 9], [7]], [[3, 4], [2]])
    with pytest.raises(OutOfMemory, match=r"a pass over 5 tokens: set ppo\.micro_batch_tokens to 2;"):
        trainer.learn(responses, torch.tensor([1.0, 2.0]))
    trainer.config = PPOConfig(old_logprobs="recompute")
    with pytest.raises(OutOfMemory, match=r"a pass over 6 tokens: set ppo\.micro_batch_tokens to 3;"):
        trainer.learn(responses, torch.tensor([1.0, 2.0]))  # half of what there was, not of what was allowed


def test_other_errors_keep_their_own_words():
    trainer = tiny_trainer(old_logprobs="recompute")
    trainer.policy.model.transformer.h[0].register_forward_pre_hook(lambda *_: torch.empty(2) @ torch.empty(3))
    with pytest.raises(RuntimeError, match=r"inconsistent tensor size|size mismatch"):
        trainer.train_step()
