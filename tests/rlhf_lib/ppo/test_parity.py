"""Our trainer against what TRL 0.11.4's PPOTrainer computed on the same weights, responses, scores and permutations.

`benchmarks/trl_parity.py` recorded TRL's side in an environment of its own; docs/ppo.md says how to repeat it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from tiny_models import one_thread, word_tokenizer  # noqa: F401
from transformers import AutoModelForCausalLM

from rlhf_lib.models.policy import Policy
from rlhf_lib.ppo.rollout import Responses
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.recipe import GenerationConfig, LoraConfig, PPOConfig

FIXTURE = Path(__file__).parents[2] / "fixtures/trl_parity"
RECORD = json.loads((FIXTURE / "trl_parity.json").read_text())
# TRL shows the scores that PPO is paid; ours under these names are in the reward's own units.
RENAMED = {"ppo/mean_scores": "ppo/mean_shaped_scores", "ppo/std_scores": "ppo/std_shaped_scores"}
# Both are zero but for rounding where the mini-batch is the batch, or a difference of near-equal sums.
EXEMPT = {"ppo/policy/advantages_mean", "ppo/policy/policykl"}


class Replay(PPOTrainer):
    """The trainer, with TRL's permutations in place of its own."""

    permutations: list[list[int]]

    def minibatch_order(self, epoch: int, rows: int) -> np.ndarray:
        return np.array(self.permutations[epoch])


@pytest.fixture(params=RECORD["cases"], ids=lambda case: case["name"])
def case(request) -> dict:
    return request.param


@pytest.fixture
def trainer(case) -> Replay:
    model = AutoModelForCausalLM.from_pretrained(FIXTURE / "policy")
    policy = Policy(model, LoraConfig(r=4, alpha=8, target_modules=["c_attn"]) if case["lora"] else None)
    if case["lora"]:
        set_peft_model_state_dict(policy.adapted, load_file(FIXTURE / "adapter/adapter_model.safetensors"))
    weights = load_file(FIXTURE / "policy/model.safetensors")
    policy.load_state_dict({n: w for n, w in weights.items() if n.startswith("v_head.")}, strict=False)
    settings = RECORD["defaults"] | case["config"]
    config = PPOConfig(
        steps=len(case["steps"]),
        batch_size=RECORD["batch_size"],
        mini_batch_size=case["mini_batch_size"],
        learning_rate=RECORD["learning_rate"],
        max_grad_norm=None,
        kl_coef=settings["init_kl_coef"],
        kl_controller="adaptive" if settings["adap_kl_ctrl"] else "fixed",
        kl_target=settings["target"],
        kl_horizon=int(settings["horizon"]),
        clip_scores=settings["score_clip"],
        **{
            name: settings[name]
            for name in ("gamma", "lam", "cliprange", "cliprange_value", "vf_coef", "ppo_epochs", "whiten_rewards")
        },
    )
    prompts = [{"query": "", "input_ids": [1, 2]}]
    return Replay(policy, word_tokenizer(97), lambda queries, responses: [], prompts, config, GenerationConfig())


def trained_tensors(policy: Policy) -> dict[str, torch.Tensor]:
    """Copies of what is trained, by the fixture's names; GPT-2's c_attn.bias as its three parts."""
    tensors = {f"v_head.{name}": tensor for name, tensor in policy.v_head.named_parameters()}
    tensors |= get_peft_model_state_dict(policy.adapted) if policy.adapted else dict(policy.model.named_parameters())
    for name in [name for name in tensors if name.endswith("c_attn.bias")]:
        tensors |= zip(
            (f"{name}[{part}]" for part in ("query", "key", "value")), tensors.pop(name).chunk(3), strict=True
        )
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def test_three_steps_agree_with_trl(case, trainer):
    start = trained_tensors(trainer.policy)
    for number, step in enumerate(case["steps"], start=1):
        rows = len(step["queries"])
        given = Responses(step["queries"], step["responses"], [""] * rows, [True] * rows, [], [])
        trainer.permutations = step["permutations"]
        stats = trainer.learn(given, torch.tensor(step["scores"]))

        off = {}
        for name, theirs in step["statistics"].items():
            ours = stats[RENAMED.get(name, name)]
            tolerance = 1e-4 * abs(theirs) + (1.01e-4 if name == "objective/kl" else 1e-6)
            if name not in EXEMPT and abs(ours - theirs) > tolerance:
                off[name] = (ours, theirs)
        assert not off, f"step {number}"
        assert trainer.kl_controller.value == pytest.approx(step["kl_coef_after"], rel=1e-4, abs=1e-6)

        now = trained_tensors(trainer.policy)
        assert now.keys() == step["update_norms"].keys()
        moved = {name: float((now[name] - start[name]).norm()) for name in now if "[key]" not in name}
        assert moved == pytest.approx({name: step["update_norms"][name] for name in moved}, rel=1e-3), f"step {number}"
