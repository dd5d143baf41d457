"""The estimate of a run's time: its arithmetic by hand, and its measurement on a tiny model."""

import pytest

from rlhf_lib.plan import timing
from rlhf_lib.plan.memory import Batch, policy_config
from rlhf_lib.plan.timing import Rates, Work, estimate, measure
from rlhf_lib.recipe import Recipe
from rlhf_lib.training.scratch import train_tokenizer


@pytest.fixture
def recipe() -> Recipe:
    scratch = {"layers": 1, "width": 16, "heads": 1, "vocab_size": 300, "positions": 64}
    return Recipe.model_validate(
        {
            "name": "x",
            "data": {"prompts": {"dataset": "x"}, "preferences": {}},
            "policy": {"train": {"from_scratch": scratch}},
            "generation": {"max_new_tokens": 6},
            "ppo": {"steps": 5, "batch_size": 10, "ppo_epochs": 3},
            "evaluation": {"prompts": 20, "best_of": None},
        }
    )


def test_the_stages_by_hand(recipe):
    batch = Batch.of(recipe, prompt=4)  # 10 rows of 10 tokens
    rates = Rates(forward=0.001, update=0.01, sampling=2.0)
    found = estimate(recipe, rates, batch, Work(base_model=1000, reward_model=500, evaluation=300, reward=None))
    step = 2.0 + 0.1 + (2 * 0.1 + 3 * 1.0)  # sampling, scoring, reference and old log-probs, three epochs
    assert found == pytest.approx(
        {
            "base_model": 10.0,
            "reward_model": 5.0,
            "ppo": 5 * step,
            "evaluation": 2 * 2 * (2.0 + 0.1) + 2 * 0.3,  # two batches of both models, and the texts
            "ppo_step": step,
        }
    )
    recipe.policy.train.answers = "both"  # then SFT on chosen answers is a baseline
    recipe.evaluation.best_of, recipe.evaluation.best_of_prompts = 4, 10
    compared = estimate(recipe, rates, batch, Work(base_model=1000, reward_model=500, evaluation=300, reward=None))
    assert compared["base_model"] == pytest.approx(20.0)
    assert compared["evaluation"] == pytest.approx((3 * 2 + 4) * (2.0 + 0.1) + 2 * 0.3)
    dear = estimate(recipe, rates, batch, Work(base_model=0, reward_model=0, evaluation=0, reward=0.5))
    assert dear["ppo_step"] == pytest.approx(step - 0.1 + 10 * 0.5)
    several = estimate(recipe, rates, batch, Work(base_model=0, reward_model=0, evaluation=0, reward=None, models=3))
    assert several["ppo_step"] == pytest.approx(step + 2 * 0.1)


def test_the_rates_are_measured_and_a_large_model_is_left_alone(recipe, monkeypatch):
    tokenizer = train_tokenizer(["the cat sat on the mat"], 300, 64)
    config = policy_config(recipe, len(tokenizer))
    rates = measure(recipe, config, tokenizer, 10_000, Batch.of(recipe, prompt=4))
    assert rates is not None
    assert min(rates.forward, rates.update, rates.sampling) > 0
    monkeypatch.setattr(timing, "_build", lambda *_: pytest.fail("a model of ten billion parameters was built"))
    assert measure(recipe, config, tokenizer, 10**10, Batch.of(recipe, prompt=4)) is None
