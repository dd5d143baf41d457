"""The figures and texts behind the checks of a reward model, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_lib.recipe import Recipe
from rlhf_lib.rewards.check_measures import length_bias, overconfidence, pairwise_outcomes, reliability
from rlhf_lib.rewards.check_texts import over_long, repeated_word, shuffled_words, split_text


def test_accuracy_counts_ties_half():
    outcomes = pairwise_outcomes(np.array([2.0, 1.0, 0.0, 5.0]), np.array([1.0, 1.0, 3.0, 4.0]))
    assert outcomes.tolist() == [1, 0.5, 0, 1]


def test_calibration_by_hand():
    # Differences of log 4 are predicted as 0.8 (bin 8), the other order as 0.2 (bin 2). Three of four pairs are in
    # order, so 0.75 and 0.25 are observed: the error is 0.05 in both bins.
    difference = math.log(4)
    bins = reliability(np.array([1, 1, 1, -1]) * difference, np.zeros(4))
    assert bins.predicted_B == pytest.approx([0.2, 0.8])
    assert bins.observed_B == pytest.approx([0.25, 0.75])
    assert bins.count_B.tolist() == [4, 4]
    assert bins.error == pytest.approx(0.05)


def test_calibration_tells_confidence_from_knowledge():
    rng = np.random.default_rng(0)
    true = rng.normal(scale=2, size=4000)
    chosen_first = rng.random(4000) < 1 / (1 + np.exp(-true))
    difference = np.where(chosen_first, true, -true)  # chosen - rejected of an honest Bradley-Terry model
    zeros = np.zeros(4000)
    assert reliability(difference, zeros).error < 0.03
    assert reliability(5 * difference, zeros).error > 0.1  # overconfident
    assert reliability(difference / 5, zeros).error > 0.1  # underconfident
    assert reliability(zeros + 9, zeros).error < 0.001  # sure and right
    assert reliability(zeros - 9, zeros).error > 0.999  # sure and wrong: taken in one order only, it would be a "0"


def test_overconfidence_by_hand():
    # 100 pairs claim 0.8 each, 50 are in order: Wilson's interval of 50 in 100 ends at 0.5962
    difference = math.log(4) * np.repeat([1.0, -1.0], 50)
    zeros = np.zeros(100)
    assert overconfidence(difference, zeros) == pytest.approx(0.8 - 0.5962, abs=1e-4)
    assert overconfidence(difference[45:55], np.zeros(10)) < 0.8 - 0.7  # of ten it could be 0.76
    assert overconfidence(difference / 100, zeros) == 0  # claims 0.503
    assert overconfidence(np.abs(difference) / 100, zeros) == 0  # right, and claims too little


def test_an_honest_model_is_not_overconfident_however_few_the_pairs():
    rng = np.random.default_rng(0)
    for count in (10, 50, 200):
        found = []
        for _ in range(200):
            true = rng.normal(scale=2, size=count)
            right = rng.random(count) < 1 / (1 + np.exp(-np.abs(true)))
            found.append(overconfidence(np.where(right, np.abs(true), -np.abs(true)), np.zeros(count)))
        assert np.mean(np.array(found) > 0.15) == 0  # the gate's default
        assert np.quantile(found, 0.9) < 0.05


def test_length_bias_forgives_the_data_and_not_the_model():
    rng = np.random.default_rng(0)
    base, extra = rng.integers(20, 60, 500).astype(float), rng.integers(5, 60, 500).astype(float)
    long, short = base + extra, base  # every chosen answer is the longer one
    assert length_bias(long, long, short, short) == pytest.approx(1)
    assert length_bias(-long, long, -short, short) == pytest.approx(-1)
    assert length_bias(np.log(long), long, np.log(short), short) == pytest.approx(1, abs=0.15)
    prompt, noise = rng.normal(scale=9, size=500), rng.normal(size=(2, 500))
    assert length_bias(prompt + 2 + noise[0], long, prompt + noise[1], short) == pytest.approx(0, abs=0.1)
    assert length_bias(np.ones(3), np.arange(3.0)) is None
    assert length_bias(np.array([1.0, 3, 2]), np.array([1.0, 2, 3])) == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)


def test_degenerate_texts():
    rng = np.random.default_rng(0)
    response = " one two three four"
    assert len(set(repeated_word(response, rng).split())) == 1
    assert len(repeated_word(response, rng).split()) == 4
    for _ in range(20):
        shuffled = shuffled_words(" a b", rng)
        assert shuffled == " b a"
    assert sorted(shuffled_words(response, rng).split()) == sorted(response.split())
    assert shuffled_words(" no no", rng) == " no no"
    assert repeated_word("", rng) == ""
    assert len(over_long(response).split()) >= 2000
    assert len(over_long(" x" * 3000).split()) >= 3000


@pytest.mark.parametrize(
    ("kind", "query", "response"),
    [
        ("dialogue", "\n\nHuman: a\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant:", " e f"),
        ("first_turn", "a b", " c"),
        ("text", "\n\nHuman: a\nb\n\nAssistant: c", "\n\nHuman: d\n\nAssistant: e f"),
        ("first_words", "Human: a", " b Assistant: c Human:"),
    ],
)
def test_real_text_is_split_as_the_reward_will_see_it(kind, query, response):
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "data": {"prompts": {"dataset": "x", "query": {"kind": kind, "min": 2, "max": 3}}},
            "policy": {"model": "x"},
            "reward": {"kind": "classifier", "model": "x"},
            "generation": {"max_new_tokens": 4},
        }
    )
    text = "\n\nHuman: a\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant: e f"
    assert split_text(text, recipe, np.random.default_rng(0)) == (query, response)
