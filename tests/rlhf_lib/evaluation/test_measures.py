"""Reward delta, win rate, KL and diversity against figures worked out by hand."""

import math

import pytest
import torch

from rlhf_lib.evaluation.measures import distinct, kl_per_response, ngrams, repetition, reward_delta, win_rate, words


def test_reward_delta_of_four_prompts():
    result = reward_delta([0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 4.0, 2.0])
    assert result.reference == 1.5
    assert result.policy == 2.0
    assert result.delta == 0.5
    assert result.win_rate == (1 + 0.5 + 1 + 0) / 4
    assert result.reference_std == pytest.approx(math.sqrt(1.25))
    assert (result.prompts, result.ci95) == (4, None)  # nothing that four prompts could say


def test_interval_is_paired():
    """A constant gain is certain, however far the prompts' scores lie apart."""
    reference = [-100.0, 3.0, 50.0, 7.0] * 8
    result = reward_delta(reference, [score + 2 for score in reference])
    assert result.ci95 == pytest.approx((2.0, 2.0))
    assert result.win_rate == 1.0


def test_win_rate_counts_ties_half():
    assert win_rate([1, 1, 1, 1], [1, 1, 2, 0]) == 0.5
    assert win_rate([1, 1], [0, 1]) == 0.25


def test_reward_delta_refuses_unequal_lengths():
    with pytest.raises(ValueError, match="equal lengths"):
        reward_delta([1.0], [1.0, 2.0])


def test_kl_sums_over_tokens_and_averages_over_responses():
    policy = [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0]), torch.tensor([-0.5, -0.5, -0.5])]
    reference = [torch.tensor([-2.0, -2.5]), torch.tensor([-2.5]), torch.tensor([-1.5, -1.5, -1.5])]
    # log-ratios: 1.5, -0.5, 3: mean 4/3, sample std sqrt(37/12)
    kl, error = kl_per_response(policy, reference)
    assert kl == pytest.approx(4 / 3)
    assert error == pytest.approx(math.sqrt(37 / 12) / math.sqrt(3))


def test_answers_to_one_prompt_count_as_one():
    policy, prompts = [i % 7 / 7 for i in range(40)], [f"prompt {i}" for i in range(40)]
    once, twice = (reward_delta([0.0] * 40 * n, policy * n, prompts=prompts * n) for n in (1, 2))
    assert twice.ci95 == pytest.approx(once.ci95)
    assert twice.prompts == once.prompts == 40
    few = reward_delta([0.0] * 40, policy, prompts=["a", "b"] * 20)
    assert (few.prompts, few.ci95) == (2, None)  # forty answers, but to two prompts
    ratios = [torch.tensor([-1.0]), torch.tensor([-3.0])], [torch.tensor([-2.0]), torch.tensor([-2.5])]
    kl, error = kl_per_response(*ratios)
    again = kl_per_response(ratios[0] * 3, ratios[1] * 3, ["a", "b"] * 3)
    assert again == pytest.approx((kl, error))


def test_kl_of_one_response_has_no_standard_error():
    kl, error = kl_per_response([torch.tensor([-1.0])], [torch.tensor([-1.25])])
    assert kl == 0.25
    assert math.isnan(error)


def test_kl_estimate_finds_the_true_divergence():
    """Three independent tokens a response, each from p = (0.8, 0.2) against q = (0.5, 0.5)."""
    p, q = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
    draws = torch.multinomial(p, 3 * 4000, replacement=True, generator=torch.Generator().manual_seed(0)).view(-1, 3)
    kl, error = kl_per_response(list(p.log()[draws]), list(q.log()[draws]))
    exact = 3 * float((p * (p / q).log()).sum())
    assert error == pytest.approx(math.sqrt(3 * 0.16) * math.log(4) / math.sqrt(4000), rel=0.05)
    assert abs(kl - exact) < 3 * error


def test_words_split_punctuation_and_case():
    assert words("I'm HERE, now") == ["i", "'", "m", "here", ",", "now"]
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []


def test_distinct_divides_by_words():
    # 7 words; unigrams a b c; bigrams (a b) twice, (b a), (b c): none across texts
    texts = ["a b a b", "a b c"]
    assert distinct(texts, 1) == 3 / 7
    assert distinct(texts, 2) == 3 / 7
    assert distinct(["yes"] * 10, 1) == 0.1
    assert distinct(["", " "], 2) == 0.0


def test_repetition_is_inside_a_response():
    # "a b a b": bigrams ab ba ab: 1 of 3 repeated; "x y": none; "z" has no bigram and doesn't count
    assert repetition(["a b a b", "x y", "z"]) == pytest.approx(1 / 6)
    assert repetition(["x y"] * 5) == 0.0
    assert repetition(["no no no no no"]) == pytest.approx(3 / 4)
    assert repetition(["one", ""]) is None
