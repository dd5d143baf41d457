"""PPO reaches optima that are known in closed form, from scratch, on three seeds."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from tiny_models import one_thread, word_tokenizer  # noqa: F401
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lib.models.policy import Policy
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.recipe import GenerationConfig, PPOConfig

VOCABULARY, LENGTH = 16, 8


def count(queries: list[str], responses: list[str]) -> list[float]:
    """How often a response says w3."""
    return [float(response.split().count("w3")) for response in responses]


def trainer(seed: int, dtype: torch.dtype = torch.float32, **ppo) -> PPOTrainer:
    """A GPT-2 that starts exactly uniform (its tied embeddings are zero), answering with 8 tokens of 16."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )
    torch.nn.init.zeros_(model.transformer.wte.weight)
    prompts = [{"query": f"w{i}", "input_ids": [i]} for i in range(1, VOCABULARY)]
    return PPOTrainer(
        Policy(model),
        word_tokenizer(VOCABULARY),
        count,
        prompts,
        PPOConfig(**{"steps": 200, "batch_size": 64, "ppo_epochs": 2, "learning_rate": 1e-2} | ppo),
        GenerationConfig(max_new_tokens=LENGTH, ignore_eos=True),
        seed=seed,
        dtype=dtype,
    )


def mean(history: list[dict], name: str) -> float:
    return sum(stats[name] for stats in history) / len(history)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_score_is_found(seed, dtype):
    """Without a KL term the best response says the word at every token: a score of 8, from 0.5 by chance."""
    threshold = 0.9 * LENGTH
    history = list(trainer(seed, dtype, kl_coef=0.0, kl_controller="fixed", stop_at_reward=threshold).train())
    assert history[0]["ppo/mean_scores"] < 1.5
    assert history[-1]["ppo/mean_scores"] >= threshold


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_tradeoff_of_score_and_kl_is_found(seed):
    """The maximum of E[score] - beta KL is beta log E_reference[exp(score / beta)]; with a reference that is uniform
    over V words this is beta log((exp(1 / beta) + V - 1) / V) a token. It is 0 at the start, and negative where the
    policy goes for the score alone: 1 - beta log V."""
    beta = 0.5
    best = LENGTH * beta * log((exp(1 / beta) + VOCABULARY - 1) / VOCABULARY)
    assert LENGTH * (1 - beta * log(VOCABULARY)) < 0
    last = list(trainer(seed, kl_coef=beta, kl_controller="fixed", steps=60).train())[-20:]
    assert mean(last, "ppo/mean_scores") - beta * mean(last, "objective/kl") >= 0.9 * best
