"""One PPO over two processes against the same over one; a process killed, and checkpoints at another number of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config import load_config_from_file
from datasets import Dataset
from tiny_models import one_thread, tiny_gpt2, tiny_prompts, tiny_t5, weights, word_tokenizer  # noqa: F401
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rlhf_lib.errors import RecipeError, RLHFError
from rlhf_lib.ppo import run as ppo_run
from rlhf_lib.ppo.checkpoint import checkpoints, last_step
from rlhf_lib.ppo.parallel import Processes, split_micro_batches
from rlhf_lib.ppo.run import Job, launch, launch_command, train
from rlhf_lib.recipe import Recipe

# ---------------------------------------------------------------- who does what


def test_a_mini_batch_is_divided_into_as_many_micro_batches_for_each():
    rows = np.array([7, 3, 5, 1, 0, 2])
    lengths = [4, 9, 4, 1, 4, 1]  # 4 + 4 + 4 for the first process, 9 + 1 + 1 for the second
    first, second = split_micro_batches(rows, lengths, 2, tokens=10)
    assert [part.tolist() for part in first] == [[7, 5], [0]]
    assert [part.tolist() for part in second] == [[3, 1], [2]]
    first, second = split_micro_batches(rows, lengths, 2, tokens=5)
    assert [part.tolist() for part in first] == [[7], [5], [0]]
    assert [part.tolist() for part in second] == [[3], [1], [2]]  # two would do, but all make as many passes


def test_one_process_works_through_a_mini_batch_in_its_order():
    rows = np.array([4, 2, 9])
    assert [part.tolist() for part in split_micro_batches(rows, [3, 3, 3], 1, tokens=6)[0]] == [[4, 2], [9]]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_shares_of_all_are_the_whole(count):
    processes = Processes()
    processes.count = count
    covered = []
    for processes.rank in range(count):
        share = processes.share(13)
        covered += range(share.start, share.stop)
    assert covered == list(range(13))


def test_rows_that_cannot_be_shared_evenly_are_refused():
    processes = Processes()
    processes.count = 3
    with pytest.raises(RecipeError, match=r"ppo\.batch_size is 8, which 3 processes can't share"):
        processes.check(batch_size=8)
    with pytest.raises(ValueError, match=r"batch_size \(8\) must be a multiple of compute\.processes"):
        recipe("none", batch_size=8, processes=3)


# ---------------------------------------------------------------- two against one

REWARD = """
import os, pathlib, signal
calls = []

def reward(queries, responses):
    calls.append(1)
    marker = pathlib.Path(__file__).with_name("kill_rank_1_at")
    if os.environ.get("RANK") == "1" and marker.exists() and len(calls) == int(marker.read_text()):
        marker.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    numbers = [[int(word[1:]) % 5 for word in response.split()] for response in responses]
    return [sum(n) / max(len(n), 1) - 2.0 for n in numbers]

def against(queries, responses):
    return [-score for score in reward(queries, responses)]

def silent_in_the_second(queries, responses):
    return None if os.environ.get("RANK") == "1" else reward(queries, responses)
"""

AGAINST = {"kind": "function", "function": "shared_reward:against"}


def recipe(model: str, *, processes: int, policy: dict | None = None, judge: bool = False, **ppo) -> Recipe:
    settings = {
        "steps": 3,
        "batch_size": 8,
        "mini_batch_size": 6,  # and a last one of 2
        "micro_batch_tokens": 16,
        "ppo_epochs": 2,
        "learning_rate": 1e-2,
        "scale_scores": True,
        "kl_horizon": 40,
        "eval_every": 2,
        "eval_prompts": 3,
        "eps": 1e-4,  # Adam turns rounding of a gradient near 0 into a step: not at this eps
    }
    return Recipe.model_validate(
        {
            "name": "shared",
            "data": {"prompts": {"dataset": "none"}},
            "policy": {"model": model} | (policy or {}),
            "reward": {"kind": "function", "function": "shared_reward:reward"},
            "generation": {"max_new_tokens": 7},
            "ppo": settings | ppo,
            "evaluation": {"judges": {"against": AGAINST} if judge else {}},
            "compute": {"device": "cpu", "precision": "fp32", "processes": processes},
        }
    )


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Makes jobs on the same model, prompts and reward, in folders of their own unless one is named."""
    (tmp_path / "shared_reward.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    for split, rows in (("train", tiny_prompts()), ("test", tiny_prompts(4))):
        Dataset.from_list(rows).save_to_disk(tmp_path / split)

    def made(name: str, processes: int, build=tiny_gpt2, **options) -> Job:
        model = tmp_path / build.__name__
        build().save_pretrained(model)
        word_tokenizer().save_pretrained(model)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Job(
            recipe=recipe(str(model), processes=processes, **options),
            policy=str(model),
            prompts={split: str(tmp_path / split) for split in ("train", "test")},
            reward=None,
            folder=str(folder),
            checkpoints=str(folder / "checkpoints"),
            key="job",
        )

    return made


def learnt(job: Job, load=AutoModelForCausalLM) -> dict[str, torch.Tensor]:
    return weights(load.from_pretrained(Path(job.folder) / "policy"))


def agree(shared, alone) -> None:
    """Statistics, and weights that have moved, to rounding."""
    assert [event.step for event in shared] == [event.step for event in alone]
    for ours, expected in zip(shared, alone, strict=True):
        assert ours.stats.keys() == expected.stats.keys()
        for name, value in expected.stats.items():
            if not name.startswith("time/"):
                assert ours.stats[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name


def near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name, expected in b.items():
        torch.testing.assert_close(a[name], expected, rtol=0, atol=2e-4)


JUDGED = {
    "judge": True,
    "steps": 6,
    "eval_every": 1,
    "eval_prompts": 1,  # fewer than processes
    "keep_best": "judge/against",
    "stop_when": {"judge": "against", "falls_for": 2},
}


@pytest.mark.parametrize(
    ("build", "load", "options"),
    [
        (tiny_gpt2, AutoModelForCausalLM, JUDGED),
        (tiny_gpt2, AutoModelForCausalLM, {"policy": {"unfrozen_layers": 1}, "critic_warmup": 1}),
        (tiny_t5, AutoModelForSeq2SeqLM, {"policy": {"lora": {"r": 4, "alpha": 8}}}),
    ],
    ids=["gpt2, judged", "gpt2, top block, warm-up of the value head", "t5, LoRA"],
)
def test_two_processes_compute_what_one_does(job, build, load, options):
    one, two = job("one", 1, build, **options), job("two", 2, build, **options)
    alone = list(train(one))
    if options is JUDGED:
        assert [event.step for event in alone] == list(range(len(alone)))  # from before training on
        assert len(alone) <= 6  # and stopped
    agree(list(train(two)), alone)
    near(learnt(two, load), learnt(one, load))
    moved = learnt(one, load)
    start = weights(build())
    assert max(float((moved[name] - start[name]).abs().max()) for name in moved) > 1e-2


def test_a_killed_process_ends_the_run_which_goes_on_at_another_number_of_them(job, tmp_path):
    options = {"steps": 5, "checkpoint_every": 1, "eval_every": None, "keep_checkpoints": 9}
    whole = job("whole", 1, **options)
    expected = list(train(whole))

    broken = train(job("broken", 1, **options))
    begun = [next(broken), next(broken)]
    broken.close()  # two steps by one process

    (tmp_path / "kill_rank_1_at").write_text("3")  # the third call to the reward: of step 4, by the second of two
    with pytest.raises(RLHFError, match=r"one of PPO's 2 processes was killed.*resumes from its last checkpoint"):
        list(launch(job("broken", 2, **options)))
    folder = tmp_path / "broken" / "checkpoints"
    assert [path.name for path in checkpoints(folder)] == [f"step-00000{i}" for i in (4, 3, 2, 1)]

    last = job("broken", 1, **options)
    rest = list(train(last))
    assert [event.resumed for event in rest] == [True, True, True, True, False]
    agree(rest, expected)
    agree(begun, expected[:2])
    near(learnt(last), learnt(whole))


def test_an_interrupted_run_keeps_the_step_that_all_processes_have_done(job):
    """Ctrl-C is for the process that launched the others: it asks them to end, and gets the signal when they have."""
    options = {"steps": 1000, "checkpoint_every": None, "eval_every": None}
    shared, events = job("shared", 2, **options), []

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def consume() -> None:
        for event in train(shared):
            events.append(event)
            if event.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            consume()
    finally:
        signal.signal(signal.SIGINT, before)
    assert 2 <= len(events) < 1000
    assert last_step(Path(shared.checkpoints)) == len(events)
    assert not (Path(shared.folder) / "policy").exists()
    again = train(job("shared", 1, **options))
    assert [next(again).resumed for _ in range(len(events) + 1)] == [True] * len(events) + [False]


def test_sharded_by_fsdp2_they_compute_the_same_and_go_on_from_a_checkpoint(job, monkeypatch):
    options = {"steps": 5, "checkpoint_every": 2, "critic_warmup": 3}  # which goes on after the checkpoint
    whole = job("whole", 1, **options)
    expected = list(train(whole))

    begun = train(job("sharded", 1, **options))
    for _ in range(3):
        next(begun)
    begun.close()  # its checkpoint is of step 2
    command = launch_command(job("sharded", 2, **options), Path("job.json"))
    at = command.index("-m", 4)
    worker = [*command[:at], str(Path(__file__).parents[2] / "support" / "fsdp_worker.py")]
    monkeypatch.setattr(ppo_run, "launch_command", lambda _job, file: [*worker, str(file)])
    sharded = job("sharded", 2, **options)
    events = list(launch(sharded))
    assert [event.resumed for event in events] == [True, True, False, False, False]
    agree(events, expected)
    near(learnt(sharded), learnt(whole))


def test_an_error_of_a_process_keeps_its_own_words(job):
    """Of the second, too, while the first has nothing to complain of."""
    wrong = job("wrong", 2)
    wrong.recipe.reward.function = "shared_reward:silent_in_the_second"
    with pytest.raises(RLHFError, match="the reward function shared_reward:silent_in_the_second gave None"):
        list(launch(wrong))


def test_a_configuration_file_of_accelerate_takes_the_place_of_our_options(job):
    configured = job("configured", 4, mini_batch_size=4)
    configured.recipe.compute.accelerate = "fsdp2.yaml"
    command = launch_command(configured, Path("job.json"))
    assert command[4:] == ["--num_processes", "4", "--config_file", "fsdp2.yaml", "-m", "rlhf_lib.ppo.run", "job.json"]


@pytest.mark.parametrize("name", ["fsdp2", "two-nodes", "deepspeed-zero2"])
def test_the_example_configurations_are_what_accelerate_reads(name):
    file = Path(__file__).parents[3] / "docs" / "accelerate" / f"{name}.yaml"
    read = load_config_from_file(str(file))
    assert read.num_processes == {"two-nodes": 8}.get(name, 4)
    assert bool(read.fsdp_config) == (name == "fsdp2")
    assert bool(read.deepspeed_config) == (name == "deepspeed-zero2")
