"""Evaluation prompts while PPO learns, and the best step's weights."""

from __future__ import annotations

import pytest
import torch
from tiny_models import one_thread, remainder_reward, same, tiny_prompts, tiny_trainer, weights  # noqa: F401

from rlhf_lib.ppo.checkpoint import load_best, save_best
from rlhf_lib.ppo.rollout import sample_responses
from rlhf_lib.recipe import LoraConfig

LORA = LoraConfig(r=4, alpha=8)


def test_evaluation_prompts_are_scored_every_so_many_steps_with_the_same_random_numbers():
    prompts = tiny_prompts(20)[12:]
    trainer = tiny_trainer(eval_prompts=prompts, eval_every=2, steps=4, learning_rate=0.0)
    stats = list(trainer.train())
    assert ["eval/mean_scores" in s for s in stats] == [False, True, False, True]
    assert stats[1]["eval/mean_scores"] == stats[3]["eval/mean_scores"]  # the policy stayed, so they must
    sampled = sample_responses(
        trainer.policy.model,
        trainer.tokenizer,
        [row["input_ids"] for row in prompts],
        trainer.generation,
        seed=0,
        step=2**31 - 1,
    )
    scores = remainder_reward([], sampled.texts)
    assert stats[3]["eval/mean_scores"] == pytest.approx(sum(scores) / 8, rel=1e-5)
    assert stats[3]["eval/std_scores"] == pytest.approx(float(torch.tensor(scores).std()), rel=1e-5)
    assert stats[3]["eval/responses_len_mean"] == sum(map(len, sampled.response_ids)) / 8


def test_evaluation_changes_nothing_in_the_run():
    plain, watched = tiny_trainer(), tiny_trainer(eval_prompts=tiny_prompts(4), eval_every=1)
    for expected, stats in zip(plain.train(), watched.train(), strict=True):
        assert {n: v for n, v in stats.items() if not n.startswith(("time/", "eval/"))} == {
            n: v for n, v in expected.items() if not n.startswith("time/")
        }
    assert same(weights(plain.policy), weights(watched.policy))


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_best_weights_are_kept_and_put_back(tmp_path, lora):
    trainer = tiny_trainer(lora=lora)
    assert not load_best(trainer, tmp_path)
    trainer.train_step()
    save_best(trainer, tmp_path)
    trainer.train_step()
    save_best(trainer, tmp_path)  # replaces the one before
    best = weights(trainer.policy)
    trainer.train_step()
    assert not same(weights(trainer.policy), best)
    assert load_best(trainer, tmp_path)
    assert same(weights(trainer.policy), best)
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]
