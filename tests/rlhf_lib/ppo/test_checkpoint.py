"""A resumed run equals an uninterrupted one bit for bit, and a checkpoint that isn't whole and ours is passed over."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_models import one_thread, remainder_reward, same, tiny_gpt2, tiny_llama, tiny_trainer, weights  # noqa: F401

from rlhf_lib.ppo.checkpoint import (
    MANIFEST,
    checkpoints,
    random_states,
    resume,
    save_checkpoint,
    set_random_states,
)
from rlhf_lib.ppo.statistics import Stats
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.recipe import LoraConfig


def noisy_reward(queries: list[str], responses: list[str]) -> list[float]:
    """Draws from NumPy's and torch's generators; not from Python's, which the connection to a Prefect server of other
    tests draws from in the background (test_ppo_kill.py has it, in processes of its own)."""
    noise = np.random.rand() + torch.rand(()).item()  # noqa: NPY002
    return [score + noise for score in remainder_reward(queries, responses)]


def build(lora: LoraConfig | None = None, rotary: bool = False) -> PPOTrainer:
    """Everything that has a state is on: momentum, schedule, adaptive KL, running moments, the decision on reuse."""
    np.random.seed(3)  # noqa: NPY002
    trainer = tiny_trainer(
        tiny_llama() if rotary else tiny_gpt2(),
        lora=lora,
        reward=noisy_reward,
        steps=5,
        mini_batch_size=4,
        schedule="cosine",
        kl_horizon=40,
        scale_scores=True,
        normalize_scores=True,
    )
    torch.manual_seed(3)
    return trainer


def run(trainer: PPOTrainer, steps: int) -> list[Stats]:
    return [{n: v for n, v in trainer.train_step().items() if not n.startswith("time/")} for _ in range(steps)]


@pytest.mark.parametrize(("lora", "rotary"), [(None, False), (None, True), (LoraConfig(r=4), False)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, lora, rotary):
    whole = build(lora, rotary)
    expected = run(whole, 5)
    again = build(lora, rotary)
    assert run(again, 5) == expected  # else equality below would mean nothing
    assert same(weights(again.policy), weights(whole.policy))

    killed = build(lora, rotary)
    history = run(killed, 2)
    save_checkpoint(killed, tmp_path, key="k", history=history)
    run(killed, 1)  # what came after the checkpoint is lost

    fresh = build(lora, rotary)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    assert resume(fresh, tmp_path, key="k") == history == expected[:2]
    assert fresh.step == 2
    assert run(fresh, 3) == expected[2:]
    assert same(weights(fresh.policy), weights(whole.policy))


def test_a_gpu_s_generator_goes_on_where_it_was(monkeypatch):
    """A reward on the GPU may draw from it. Where there is no GPU, another generator takes its part."""
    device = torch.device("cuda", 0)
    if torch.cuda.is_available():
        torch.cuda.init()
        generator = torch.cuda.default_generators[0]
    else:
        generator = torch.Generator()
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generator.get_state())
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: generator.set_state(state))
    states = json.loads(json.dumps(random_states(device)))
    drawn = torch.rand(3, generator=generator, device=generator.device)
    set_random_states(states, device)
    assert torch.equal(torch.rand(3, generator=generator, device=generator.device), drawn)
    before = generator.get_state()
    set_random_states(random_states(torch.device("cpu")), device)  # a run that began on a CPU
    assert torch.equal(generator.get_state(), before)


def test_saving_changes_nothing_in_the_run(tmp_path):
    plain = build()
    expected = run(plain, 3)
    saved, history = build(), []
    for _ in range(3):
        history += run(saved, 1)
        save_checkpoint(saved, tmp_path, key="k", history=history)
    assert history == expected
    assert same(weights(plain.policy), weights(saved.policy))


def test_the_newest_are_kept(tmp_path):
    trainer = build()
    for _ in range(4):
        run(trainer, 1)
        save_checkpoint(trainer, tmp_path, key="k", history=[], keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000004", "step-000003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004"]


@pytest.fixture
def two_checkpoints(tmp_path):
    """After steps 1 and 2, with the weights as they were at step 1."""
    trainer = build()
    history = run(trainer, 1)
    save_checkpoint(trainer, tmp_path, key="k", history=history)
    before = weights(trainer.policy)
    history += run(trainer, 1)
    save_checkpoint(trainer, tmp_path, key="k", history=history)
    return tmp_path, before


def truncate(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


def remove(folder, name):
    (folder / name).unlink()


@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer.pt", "state.json", MANIFEST])
@pytest.mark.parametrize("damage", [truncate, remove, flip_a_bit])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(two_checkpoints, damage, name):
    folder, before = two_checkpoints
    damage(folder / "step-000002", name)
    trainer = build()
    with pytest.warns(UserWarning, match="step-000002 is passed over"):
        assert len(resume(trainer, folder, key="k")) == 1
    assert trainer.step == 1
    assert same(weights(trainer.policy), before)


def test_a_foreign_checkpoint_is_passed_over(two_checkpoints):
    folder, before = two_checkpoints
    manifest = folder / "step-000002" / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"key": "another"}))
    trainer = build()
    with pytest.warns(UserWarning, match="step-000002 is passed over: it belongs to a run with other settings"):
        resume(trainer, folder, key="k")
    assert same(weights(trainer.policy), before)


def test_where_none_is_good_the_run_starts_anew(two_checkpoints):
    folder, _ = two_checkpoints
    trainer = build()
    start = weights(trainer.policy)
    with pytest.warns(UserWarning, match="passed over") as warned:
        assert resume(trainer, folder, key="another") is None
    assert len(warned) == 2
    assert trainer.step == 0
    assert same(weights(trainer.policy), start)


def test_a_write_cut_short_leaves_no_checkpoint(tmp_path, two_checkpoints):
    folder, _ = two_checkpoints
    shutil.move(folder / "step-000002", folder / ".step-000002.tmp")  # as a kill before the renaming leaves it
    trainer = build()
    assert len(resume(trainer, folder, key="k")) == 1
    run(trainer, 1)
    save_checkpoint(trainer, folder, key="k", history=[])  # and it is no obstacle to writing it again
    assert [path.name for path in checkpoints(folder)] == ["step-000002", "step-000001"]
    assert not (folder / ".step-000002.tmp").exists()


def test_no_checkpoint_is_no_history(tmp_path):
    assert resume(build(), tmp_path / "absent", key="k") is None
