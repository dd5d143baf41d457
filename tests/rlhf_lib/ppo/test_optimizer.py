"""The optimizers: AdamW's settings, and the 8-bit ones, which are optional."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from tiny_models import one_thread, tiny_gpt2, tiny_trainer  # noqa: F401

from rlhf_lib.errors import RecipeError
from rlhf_lib.ppo.checkpoint import resume, save_checkpoint
from rlhf_lib.recipe import PPOConfig

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None


def test_adamw_takes_the_recipes_settings():
    settings = {"learning_rate": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.01}
    (group,) = tiny_trainer(**settings, schedule="constant").optimizer.param_groups
    assert {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.01}.items() <= group.items()


def test_the_value_head_may_learn_faster_than_the_policy():
    trainer = tiny_trainer(learning_rate=1e-3, value_learning_rate=1e-2, schedule="linear", policy={"critic": True})
    policy, values = trainer.optimizer.param_groups
    assert (policy["lr"], values["lr"]) == (1e-3, 1e-2)
    assert {id(p) for p in values["params"]} == {
        id(p) for part in (trainer.policy.v_head, trainer.policy.critic) for p in part.parameters()
    }
    assert len(policy["params"]) + len(values["params"]) == len(trainer.policy.trainable())
    head = trainer.policy.v_head.summary.bias.clone()
    assert [stats["ppo/learning_rate"] for stats in trainer.train()] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0, 0]
    assert not torch.equal(trainer.policy.v_head.summary.bias, head)


def test_a_checkpoint_with_two_rates_goes_on(tmp_path):
    def build():
        return tiny_trainer(learning_rate=1e-3, value_learning_rate=1e-2, steps=3)

    expected = [stats["ppo/loss/total"] for stats in build().train()]
    begun = build()
    save_checkpoint(begun, tmp_path, key="k", history=[begun.train_step()])
    resumed = build()
    resume(resumed, tmp_path, key="k")
    assert [stats["ppo/loss/total"] for stats in resumed.train()] == expected[1:]


@pytest.mark.skipif(INSTALLED, reason="bitsandbytes is installed")
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_without_bitsandbytes_the_message_says_how_to_get_it(optimizer):
    with pytest.raises(RecipeError, match=rf"ppo\.optimizer {optimizer} needs bitsandbytes: pip install 'ppo-rlhf"):
        tiny_trainer(optimizer=optimizer)


@pytest.mark.skipif(not INSTALLED, reason="bitsandbytes isn't installed (the extra 8bit)")
def test_8_bit_moments_learn_and_are_kept_in_checkpoints(tmp_path):
    def build():
        # bitsandbytes keeps the moments of tensors below 4,096 elements in fp32
        return tiny_trainer(tiny_gpt2(n_embd=64), optimizer="adamw_8bit", steps=4)

    whole = build()
    expected = [whole.train_step()["ppo/loss/total"] for _ in range(4)]
    moments = [v for state in whole.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    assert any(v.dtype == torch.uint8 for v in moments)
    begun = build()
    history = [begun.train_step() for _ in range(2)]
    save_checkpoint(begun, tmp_path, key="k", history=history)
    resumed = build()
    assert resume(resumed, tmp_path, key="k") == history
    assert [resumed.train_step()["ppo/loss/total"] for _ in range(2)] == expected[2:]


def test_the_names_are_checked():
    with pytest.raises(ValueError, match="optimizer"):
        PPOConfig(optimizer="sgd")
