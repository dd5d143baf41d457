"""Length kept out of a reward model: weights and the length term by hand, and what they do in training."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from datasets import Dataset

from rlhf_lib.errors import DataError, SettingsError
from rlhf_lib.recipe import RewardConfig, RewardTrainingConfig
from rlhf_lib.rewards.build import build_reward
from rlhf_lib.training.length_debias import (
    effective_pairs,
    fit_balance,
    fit_debias,
    fit_length_term,
    reweighted,
)
from rlhf_lib.training.reward_model import train_reward_model
from tests.rlhf_lib.rewards.test_rewards import COMPUTE
from tests.rlhf_lib.training.test_reward_model import SETTINGS, start  # noqa: F401


def differences(longer: int, shorter: int, by: float = 10.0) -> list[float]:
    return [by] * longer + [-by] * shorter


def test_both_signs_weigh_the_same_in_each_bin():
    """Three of four longer among the small differences, two of four among the large; a tie weighs 1."""
    lengths_N = np.array([1.0, 1.0, 1.0, -1.0, 90.0, 90.0, -90.0, -90.0, 0.0])
    balance = fit_balance(lengths_N)
    assert balance(lengths_N).tolist() == pytest.approx([2 / 3] * 3 + [2.0] + [1.0] * 4 + [1.0])
    assert balance(np.array([-1.0, 90.0])).tolist() == pytest.approx([2.0, 1.0])  # of other pairs, as validation's


def test_a_bin_without_one_of_the_signs_weighs_nothing():
    """Kept weights make up for it, so that their mean stays 1."""
    lengths_N = np.array(differences(3, 1, 1.0) + differences(4, 0, 90.0))
    assert fit_balance(lengths_N)(lengths_N).tolist() == pytest.approx([4 / 3] * 3 + [4.0] + [0.0] * 4)


def test_effective_pairs_by_hand():
    assert effective_pairs(np.array([1.0, 1.0, 1.0, 1.0])) == 4
    assert effective_pairs(np.array([2.0, 2.0, 0.0, 0.0])) == 2


def test_the_length_term_is_the_log_odds_of_the_longer_answer():
    """Three of four: with one absolute difference d, b tanh(d / s) = log 3, and s^2 = d^2 (1 - 0.5^2)."""
    lengths_N = np.array(differences(30, 10))
    term = fit_length_term(lengths_N)
    assert term.scale == pytest.approx(10 * math.sqrt(0.75))
    assert term(np.array([10.0, -10.0, 0.0])).tolist() == pytest.approx([math.log(3), -math.log(3), 0], abs=1e-4)
    assert fit_length_term(np.zeros(4))(np.zeros(4)).tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", ["balanced", "regressed"])
def test_length_that_explains_every_pair_is_refused(kind):
    rows = Dataset.from_dict({"prompt": ["q"] * 3, "chosen": ["long", "longer", "as"], "rejected": ["a", "b", "is"]})
    with pytest.raises(DataError, match=r"longer throughout.*set reward\.train\.length_debias to null"):
        fit_debias(kind, rows)


def test_weights_change_the_mean_of_the_losses():
    """Logits 1 and -2 with weights 0.5 and 1.5."""
    scores = torch.tensor([[1.0], [0.0], [0.0], [2.0]])
    losses = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))]
    change = (0.5 * losses[0] + 1.5 * losses[1]) / 2 - sum(losses) / 2
    weights = torch.tensor([0.5, 1.5])
    assert float(reweighted(scores, weights, None)) == pytest.approx(change)
    moved = torch.tensor([[3.0], [0.0], [0.0], [2.0]])
    assert float(reweighted(moved, weights, torch.tensor([2.0, 0.0]))) == pytest.approx(change)


def test_the_length_term_joins_the_pairs_own_margin():
    rows = Dataset.from_dict(
        {"prompt": ["q"] * 4, "chosen": ["xx", "xx", "xx", "x"], "rejected": ["x", "x", "x", "xx"]}
    )
    debias = fit_debias("regressed", rows)
    tokens = Dataset.from_dict({"length": [2] * 4, "margin": [0.5] * 4})
    given = debias.columns(tokens, rows)["margin"][:]
    assert given == pytest.approx([0.5 - math.log(3)] * 3 + [0.5 + math.log(3)], abs=1e-4)
    assert "weight" not in debias.columns(tokens, rows).column_names
    assert debias.metrics(rows)["length/weight"] > 0
    assert fit_debias(None, rows).metrics(rows) == {}


def random_words(draw: random.Random, count: int) -> str:
    return "".join(f" {word}" for word in draw.choices(["we", "will", "look", "at", "it", "now", "and"], k=count))


def longer_preferred(rows: int, seed: int) -> Dataset:
    """Pairs that differ in length alone: four of five chosen answers have 12 words and the rejected one 3."""
    draw = random.Random(seed)
    sizes = [(12, 3) if draw.random() < 0.8 else (3, 12) for _ in range(rows)]
    return Dataset.from_dict(
        {"prompt": [f"\n\nHuman: {i}?\n\nAssistant:" for i in range(rows)]}
        | {side: [random_words(draw, size[i]) for size in sizes] for i, side in enumerate(("chosen", "rejected"))}
    )


def test_a_model_trained_without_length_pays_less_for_it(start, tmp_path):  # noqa: F811
    """What nine more words earn: about the log-odds of 0.8, which is 1.4, and next to nothing without length."""
    draw = random.Random(5)
    answers = [random_words(draw, size) for size in (12, 3) for _ in range(40)]
    paid = {}
    for kind in (None, "balanced", "regressed"):
        train = RewardTrainingConfig(epochs=2, batch_size=32, learning_rate=3e-3, max_length=40, length_debias=kind)
        settings = SETTINGS.model_copy(update={"train": train})
        folder = tmp_path / str(kind)
        metrics, _ = train_reward_model(
            longer_preferred(320, seed=1), str(start), folder, reward=settings, compute=COMPUTE, seed=0
        )
        scores = build_reward(settings, str(folder))(["\n\nHuman: 1?\n\nAssistant:"] * 80, answers)
        paid[kind] = float(np.mean(scores[:40]) - np.mean(scores[40:]))
        assert ("length/effective_pairs" in metrics) == (kind == "balanced")
        assert ("length/weight" in metrics) == (kind == "regressed")
    assert paid[None] > 0.9
    assert abs(paid["balanced"]) < 0.5
    assert abs(paid["regressed"]) < 0.5


def test_only_a_preference_model_is_trained_on_pairs():
    with pytest.raises(SettingsError, match=r"train\.length_debias is for kinds preference and ensemble"):
        RewardConfig(kind="likelihood", model="x", train=RewardTrainingConfig(length_debias="balanced"))
    with pytest.raises(SettingsError, match="length_debias"):
        RewardTrainingConfig(length_debias="other")
