"""Rewards that look good by their accuracy and are refused: those that a rule on the answer alone would match."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rlhf_lib.data import embedded
from rlhf_lib.data.dialogue import split_dialogue
from rlhf_lib.recipe import ChecksConfig
from rlhf_lib.rewards import Reward
from rlhf_lib.rewards.check_result import CheckReport
from rlhf_lib.rewards.checks import run_checks
from rlhf_lib.rewards.ngrams import fit_ngrams

PHRASE = "Thank you for"
Pairs = list[tuple[str, str, str]]
CHECKS = ChecksConfig(pairs=300)


def _corpus(split: str) -> Pairs:
    rows = embedded.load(split)
    sides = [[split_dialogue(text) for text in rows[side]] for side in ("chosen", "rejected")]
    return [(prompt, f" {c.strip()}", f" {r.strip()}") for (prompt, c), (_, r) in zip(*sides, strict=True)]


@pytest.fixture(scope="module")
def training() -> Pairs:
    return _corpus("train[:3000]")


@pytest.fixture(scope="module")
def held_out() -> Pairs:
    return _corpus("test")


@pytest.fixture(scope="module")
def wording(training) -> Reward:
    """A linear model of the answer's n-grams: right on most pairs, whatever was asked."""
    return fit_ngrams(training)


@pytest.fixture(scope="module")
def honest(wording, held_out) -> Reward:
    """The same, whether the answer is about what the customer asked for, and what people said of the held-out pairs."""
    preferred = {(prompt, chosen) for prompt, chosen, _ in held_out}
    items = sorted({item for topic in embedded.topics() for item in topic.every_item}, key=len, reverse=True)
    item = re.compile("|".join(map(re.escape, items)))

    def about(query: str, response: str) -> float:
        named = set(item.findall(response))
        return 0.0 if not named else 4.0 if named & set(item.findall(query)) else -4.0

    def score(queries, responses):
        return [
            s + about(q, r) + 12 * ((q, r) in preferred)
            for s, q, r in zip(wording(queries, responses), queries, responses, strict=True)
        ]

    return score


def _checked(reward: Reward, held_out: Pairs, training: Pairs) -> CheckReport:
    return run_checks(reward, CHECKS, held_out, None, calibrated=False, training=training)


def _failed(report: CheckReport) -> set[str]:
    return {check.name for check in report.failed}


def test_a_reward_that_reads_the_prompt_passes(honest, held_out, training) -> None:
    report = _checked(honest, held_out, training)
    report.raise_if_failed()
    assert report.metrics["gain_over_ngrams_low"] > 0
    assert report.metrics["prompt_sensitivity_low"] > 0.6


def test_the_wording_of_the_answer_alone_is_refused(wording, held_out, training) -> None:
    report = _checked(wording, held_out, training)
    assert report.accuracy > 0.8
    assert report.metrics["prompt_sensitivity"] == 0.5
    assert report.metrics["gain_over_ngrams"] == 0
    assert {"prompt_sensitivity", "gain_over_ngrams"} <= _failed(report)


def test_a_reward_for_going_on_and_on_is_refused(honest, held_out, training) -> None:
    def long(queries, responses):
        return [s + 100 * (len(r) > 400) for s, r in zip(honest(queries, responses), responses, strict=True)]

    report = _checked(long, held_out, training)
    assert _failed(report) == {"degenerate"}
    assert report.metrics["degenerate_over_long"] > 0.9


def test_a_reward_for_a_stock_phrase_is_refused(honest, held_out, training) -> None:
    def stock(queries, responses):
        return [s + 50 * (PHRASE in r) for s, r in zip(honest(queries, responses), responses, strict=True)]

    report = _checked(stock, held_out, training)
    assert "stock_phrase" in _failed(report)
    assert report.metrics["phrase_win_rate"] > 0.8


def _texts(count: int, agreed: float, longer: float, seed: int = 0) -> Pairs:
    """Pairs of "good" and "bad" answers with labels that agree to a share, the chosen being longer in a share."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(count):
        words = ["good", "bad"] if rng.random() < agreed else ["bad", "good"]
        lengths = [9, 3] if rng.random() < longer else [3, 9]
        chosen, rejected = (f" {word}" + " so" * length for word, length in zip(words, lengths, strict=True))
        pairs.append((f"\n\nHuman: {i}\n\nAssistant:", chosen, rejected))
    return pairs


def said_good(queries, responses):
    return [float("good" in response) for response in responses]


def test_the_length_rule_on_the_same_pairs_by_hand() -> None:
    pairs = _texts(400, agreed=0.8, longer=0.6)
    metrics = run_checks(said_good, ChecksConfig(), pairs, None, calibrated=False).metrics
    right = np.array([chosen.startswith(" good") for _, chosen, _ in pairs])
    longer = np.array([len(chosen) > len(rejected) for _, chosen, rejected in pairs])
    assert metrics["accuracy"] == pytest.approx(right.mean())
    assert metrics["length_accuracy"] == pytest.approx(longer.mean())
    assert metrics["gain_over_length"] == pytest.approx(right.mean() - longer.mean())
    assert metrics["gain_over_length_low"] < metrics["gain_over_length"] < metrics["gain_over_length_high"]
    assert metrics["accuracy_chosen_longer"] == pytest.approx(right[longer].mean())
    assert metrics["accuracy_chosen_shorter"] == pytest.approx(right[~longer].mean())


def test_a_reward_no_better_than_length_is_refused_where_its_accuracy_passes() -> None:
    report = run_checks(said_good, ChecksConfig(), _texts(400, agreed=0.7, longer=0.7), None, calibrated=False)
    assert report.accuracy > 0.6
    assert "gain_over_length" in _failed(report)
    # pairs that aren't about what the reward rewards are no yardstick for it
    apart = run_checks(said_good, ChecksConfig(min_accuracy=None), _texts(400, 0.5, 0.7), None, calibrated=False)
    assert not _failed(apart)
    assert next(check for check in apart.checks if check.name == "gain_over_length").threshold is None


def test_a_second_set_of_pairs_is_reported_and_gated_only_if_asked() -> None:
    pairs, shifted = _texts(200, agreed=0.9, longer=0.5), _texts(200, agreed=0.4, longer=0.2, seed=1)
    checks = ChecksConfig(min_prompt_sensitivity=None, max_phrase_win_rate=None)
    report = run_checks(said_good, checks, pairs, None, calibrated=False, transfer=shifted)
    assert not _failed(report)
    right = np.mean([chosen.startswith(" good") for _, chosen, _ in shifted])
    assert report.metrics["transfer_accuracy"] == pytest.approx(right)
    assert report.metrics["transfer_accuracy_low"] < right < 0.5
    assert report.metrics["transfer_loss"] > np.log(2)  # worse than a coin
    assert report.metrics["transfer_length_accuracy"] == pytest.approx(0.2, abs=0.1)
    assert "transfer_ngrams_accuracy" not in report.metrics
    gated = run_checks(
        said_good,
        checks.model_copy(update={"min_transfer_accuracy": 0.5}),
        pairs,
        None,
        calibrated=False,
        training=pairs,
        transfer=shifted,
    )
    assert "transfer" in _failed(gated)
    assert "transfer_ngrams_accuracy" in gated.metrics
