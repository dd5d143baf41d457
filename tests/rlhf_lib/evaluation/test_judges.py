"""What judges say of the policy: paired figures, win rates between answers of equal length, and which of them count."""

from __future__ import annotations

import pytest
from datasets import Dataset

from rlhf_lib.errors import ModelError, RewardFailed
from rlhf_lib.evaluation.judges import (
    Accuracy,
    judge_policy,
    judgement,
    length_controlled_win_rate,
    pair_accuracy,
    why_only_reports,
)
from rlhf_lib.evaluation.report import build_report
from rlhf_lib.evaluation.results import Sampled
from rlhf_lib.recipe import JudgeConfig, RewardConfig, load_recipe
from rlhf_lib.rewards.build import build_reward
from rlhf_lib.rewards.judging import ask, judging
from rlhf_lib.statistics import paired_bootstrap
from tests.rlhf_lib.evaluation.test_metrics import compared


def wins(won: int, lost: int) -> list[float]:
    return [1.0] * won + [-1.0] * lost


def test_win_rate_between_equal_lengths_by_hand():
    """Of 20 answers that grew by 10 letters 18 win, of 20 that shrank by 10 letters 10: the mean of the logits of 0.9
    and 0.5 is log(9) / 2 = log(3), the logit of 0.75, while 0.7 win."""
    gains = wins(18, 2) + wins(10, 10)
    assert length_controlled_win_rate(gains, [10.0] * 20 + [-10.0] * 20) == pytest.approx(0.75, abs=1e-4)


def test_winning_by_length_alone_is_a_tie():
    assert length_controlled_win_rate(wins(20, 20), [5.0] * 20 + [-5.0] * 20) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("gains", "longer", "expected"),
    [
        (wins(3, 1), [7.0] * 4, 0.75),  # equally longer everywhere: nothing to control for
        (wins(4, 0), [1.0, 2.0, -1.0, -2.0], 1.0),
        ([0.0, 0.0], [1.0, -1.0], 0.5),
        ([1.0, 0.0, -1.0, 0.0], [1.0, 1.0, -1.0, -1.0], 0.5),  # ties count half: 0.75 and 0.25
    ],
)
def test_win_rate_where_length_tells_nothing(gains, longer, expected):
    assert length_controlled_win_rate(gains, longer) == pytest.approx(expected, abs=1e-4)


def sampled(texts: list[str], scores: list[float]) -> Sampled:
    return Sampled(texts, scores, [1] * len(texts), [True] * len(texts))


def test_a_judgement_is_paired_and_clustered_as_the_reward_s():
    queries = [f"q{i % 30}" for i in range(60)]
    before, after = [float(i % 7) for i in range(60)], [float(i % 7 + i % 3) for i in range(60)]
    reference, policy = sampled(["x"] * 60, before), sampled(["xy"] * 60, after)
    found = judgement("j", queries, reference, policy, (before, [-score for score in after]), seed=3)
    delta, low, high = paired_bootstrap(before, [-score for score in after], clusters=queries, seed=3)
    assert found.record["delta"] == pytest.approx(delta)
    assert found.record["ci95"] == [low, high]
    assert found.record["prompts"] == 30
    assert found.length_controlled == found.gained.win_rate
    same = judgement("j", queries, reference, policy, (before, after))
    assert same.agreement == pytest.approx(1.0)
    opposed = judgement("j", queries, reference, policy, ([-score for score in before], [-score for score in after]))
    assert opposed.agreement == pytest.approx(-1.0)
    few = judgement("j", ["q"], sampled(["x"], [0.0]), sampled(["y"], [1.0]), ([0.0], [1.0]))
    assert (few.gained.ci95, few.length_controlled, few.agreement) == (None, None, None)
    assert few.told(few.gained) == "Judge j: +1 for the policy, no 95% interval: 1 prompt is too few."


@pytest.mark.parametrize(
    ("sign", "says"),
    [
        (1.0, "Judge j finds the policy better than the reference, as the reward does: +1 (95% interval +1 to +1)."),
        (0.0, "Judge j sees no sure difference between the policy and the reference, though the reward rose by +1: "),
        (-1.0, "Judge j finds the policy worse than the reference, though the reward rose by +1: -1 (95% interval "),
    ],
)
def test_the_sentence_sets_a_judge_beside_the_reward(sign, says):
    zeros, ones, queries = [0.0] * 40, [1.0] * 40, [f"q{i}" for i in range(40)]
    sides = sampled(["x"] * 40, zeros), sampled(["x"] * 40, ones)
    reward = judgement("reward", queries, *sides, (zeros, ones)).gained
    assert judgement("j", queries, *sides, (zeros, [sign] * 40)).told(reward).startswith(says)


def test_accuracy_is_over_test_pairs_and_clustered_by_prompt():
    pairs = Dataset.from_dict(
        {
            "prompt": [f"q{i // 2}" for i in range(80)],
            "chosen": ["long"] * 60 + ["x"] * 20,
            "rejected": ["xx"] * 80,
        }
    )
    found = pair_accuracy(lambda queries, texts: [len(text) for text in texts], "j", pairs, 1000)
    assert (found.share, found.pairs) == (0.75, 80)
    low, high = found.ci95
    assert low < 0.63  # as 40 prompts, not 80 pairs, which would give 0.65
    assert high > 0.87
    assert (found.length_rule, found.gain_ci95) == (0.75, (0.0, 0.0))  # it is the rule
    assert pair_accuracy(lambda queries, texts: [len(text) for text in texts], "j", pairs, 10).ci95 is None


def test_accuracy_beside_the_length_rule_is_paired():
    """Right on all of 40 pairs of which the longer answer is the better one in 30: by 0.25, as 40 values of 1 and 0."""
    pairs = Dataset.from_dict(
        {
            "prompt": [f"q{i}" for i in range(40)],
            "chosen": ["good"] * 30 + ["good"] * 10,
            "rejected": ["bad"] * 30 + ["very bad"] * 10,
        }
    )
    found = pair_accuracy(lambda queries, texts: [float("good" in text) for text in texts], "j", pairs, 1000)
    assert (found.share, found.length_rule) == (1.0, 0.75)
    low, high = found.gain_ci95
    assert (low, high) == pytest.approx((0.125, 0.4), abs=0.03)  # 0.25 -+ 1.96 sqrt(0.25 * 0.75 / 40)


@pytest.mark.parametrize(
    ("judge", "accuracy", "says"),
    [
        ({}, None, ""),  # nothing to measure it on
        ({}, Accuracy(0.6, (0.51, 0.7), 100, 0.5, (0.01, 0.2)), ""),
        ({"gate": False}, None, "its gate is false"),
        ({"function": "a:b"}, None, "it is a part of the reward"),
        (
            {},
            Accuracy(0.9, None, 10, 0.5, None),
            "its accuracy isn't known: no 95% interval: 10 test pairs are too few",
        ),
        (
            {},
            Accuracy(0.55, (0.5, 0.6), 400, 0.4, (0.1, 0.2)),
            "it prefers the better answer in 55% of 400 test pairs (95% interval 50% to 60%), not surely more often "
            "than a coin",
        ),
        (
            {},
            Accuracy(0.6, (0.55, 0.65), 400, 0.6, (-0.02, 0.02)),
            "it is right on 60% of 400 test pairs, not surely more than the rule that the longer answer wins (60%; 95% "
            "interval of the difference -2.0% to +2.0%)",
        ),
        (
            {},
            Accuracy(0.5, (0.45, 0.55), 400, 0.5, (-0.1, 0.1)),
            "it prefers the better answer in 50% of 400 test pairs (95% interval 45% to 55%), not surely more often "
            "than a coin; it is right on 50% of 400 test pairs, not surely more than the rule that the longer answer "
            "wins (50%; 95% interval of the difference -10.0% to +10.0%)",
        ),
    ],
)
def test_which_judges_only_report(judge, accuracy, says):
    reward = RewardConfig.model_validate(
        {"kind": "sum", "terms": [{"reward": {"kind": "function", "function": "a:b"}}]}
    )
    settings = JudgeConfig.model_validate({"kind": "function", "function": "a:c"} | judge)
    assert why_only_reports(settings, reward, accuracy) == says
    acted = why_only_reports(settings, reward, accuracy, "picks the step that is exported (ppo.keep_best)")
    assert acted == (says if says == "its gate is false" else "it picks the step that is exported (ppo.keep_best)")


def brevity(queries, responses):
    return [-float(len(response)) for response in responses]


def broken(queries, responses):
    return [1.0 / (len(response) - 1) for response in responses]


def recipe(function: str):
    short = f"{{kind: function, function: '{__name__}:{function}'}}"
    return load_recipe("embedded", [f"evaluation.judges={{short: {short}}}"])


def built(function: str):
    return {name: build_reward(judge, None, "cpu") for name, judge in recipe(function).evaluation.judges.items()}


def test_a_policy_that_the_reward_likes_and_the_judge_does_not():
    comparison = compared(["x"] * 40, ["xxx"] * 40)
    (found,), columns = judge_policy(recipe("brevity"), comparison, built("brevity"), None)
    assert (found.gained.reference, found.gained.policy, found.gained.win_rate) == (-1.0, -3.0, 0.0)
    assert columns == {"judge/short_before": [-1.0] * 40, "judge/short_after": [-3.0] * 40}
    report = build_report("t", comparison, judges=[found])
    said = "Judge short finds the policy worse than the reference, though the reward rose by +2: -2 (95% interval"
    assert said in report.html({})
    assert said in report.markdown()
    assert "| short | -1.00 | -3.00 | -2.00 | -2.00 to -2.00 | 0% | 0% | n/a | n/a |" in report.markdown()
    assert "Judges score the same responses" in report.markdown()
    assert "Judges" not in build_report("t", comparison).markdown()


def test_what_a_judge_raises_names_it():
    with pytest.raises(RewardFailed, match=r"^evaluation.judges.short.function .*:broken raised ZeroDivisionError"):
        judge_policy(recipe("broken"), compared(["x"], ["x"]), built("broken"), None)
    with pytest.raises(ModelError, match=r"^evaluation.judges.j: the reward of judge j gave 1 scores for 2"):
        ask(lambda queries, texts: [1.0], "j", ["a", "b"], ["c", "d"])
    with pytest.raises(ModelError, match=r"^has 2 outputs: set evaluation.judges.j.label$"), judging("j"):
        raise ModelError("has 2 outputs: set reward.label")
