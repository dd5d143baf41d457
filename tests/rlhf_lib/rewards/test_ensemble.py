"""Ensembles of reward models against values worked out by hand: combined scores, scales, folders, agreement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_models import one_thread, tiny_gpt2, word_tokenizer  # noqa: F401
from transformers import GPT2ForSequenceClassification

from rlhf_lib.errors import ModelError
from rlhf_lib.recipe import ChecksConfig, JudgeConfig, RewardConfig
from rlhf_lib.rewards.build import build_reward, check_reward, scale_parts
from rlhf_lib.rewards.checks import run_checks
from rlhf_lib.rewards.ensemble import Ensemble, agreement, combine_scores

SCORES_KN = np.array([[1.0, 0.0, -1.0], [2.0, 0.0, 3.0], [3.0, 0.0, 4.0]])


@pytest.mark.parametrize(
    ("how", "weight", "by_hand"),
    [
        ("mean", 9.0, [2.0, 0.0, 2.0]),
        ("worst", 9.0, [1.0, 0.0, -1.0]),
        ("uncertainty", 1.5, [2.0 - 1.5 * 2 / 3, 0.0, 2.0 - 1.5 * (9 + 1 + 4) / 3]),
        ("uncertainty", 0.0, [2.0, 0.0, 2.0]),
    ],
)
def test_scores_are_combined(how, weight, by_hand):
    assert combine_scores(SCORES_KN, how, weight).tolist() == pytest.approx(by_hand, abs=1e-12)


def words(queries, responses):
    return [float(len(response.split())) for response in responses]


def negated(queries, responses):
    return [-score for score in words(queries, responses)]


class Ends:
    reads_ends = True

    def __call__(self, queries, responses, *, ended=None):
        return [10.0 * whole for whole in ended]


def test_members_are_told_which_responses_ended():
    ensemble = Ensemble([words, Ends()], "worst")
    assert ensemble(["", ""], ["a b", "c"], ended=[True, False]) == [2.0, 0.0]
    assert ensemble(["", ""], ["a b", "c"]) == [2.0, 1.0]
    assert ensemble([], []) == []


def test_agreement_is_each_members_accuracy_and_the_spread_between_them():
    chosen_KN, rejected_KN = np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[0.0, 2.0], [4.0, 0.0]])
    found = agreement(chosen_KN, rejected_KN)
    assert found.accuracies == [0.75, 0.5]  # a tie counts half
    assert found.disagreement == pytest.approx((1.0 + 0.0 + 2.0 + 1.0) / 4)


def test_the_checks_report_each_member():
    pairs = [(f"q{i}", "a b c" if i % 4 else "a", "a b") for i in range(40)]
    off = {name: None for name in ChecksConfig.model_fields if name.startswith(("min_", "max_"))}
    checks = ChecksConfig.model_validate(off)
    report = run_checks(Ensemble([words, negated], "mean"), checks, pairs, None, calibrated=False)
    assert report.metrics["member_0/accuracy"] == 0.75
    assert report.metrics["member_1/accuracy"] == 0.25
    # of n words: |n|; ten chosen answers have one word, thirty three, and the rejected ones two
    assert report.metrics["disagreement"] == pytest.approx((10 * 1 + 30 * 3 + 40 * 2) / 80)
    told = next(str(check) for check in report.checks if check.name == "disagreement")
    assert told.endswith("is not gated (accuracy of each member alone: 0.750, 0.250)")


# ---------------------------------------------------------------- sections and folders


def scorer(folder, seed: int):
    """A preference model with random weights of its own seed."""
    model = GPT2ForSequenceClassification(tiny_gpt2(vocabulary=6).config)
    model.config.num_labels, model.config.pad_token_id = 1, 0
    model.score = torch.nn.Linear(16, 1, bias=False)
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    word_tokenizer(6).save_pretrained(folder)
    return str(folder)


QUERIES, RESPONSES = ["w1 ", "w2 ", "w3 ", "w1 w2 "], ["w2", "w3 w1", "w4", "w5 w3"]


def test_members_are_put_on_one_scale_before_they_are_combined(tmp_path):
    models = [scorer(tmp_path / str(k), k) for k in range(3)]
    section = RewardConfig(kind="ensemble", models=models, combine="worst")
    check_reward(section)
    with pytest.raises(ModelError, match=r"parts of reward\.kind ensemble aren't trained or scaled yet"):
        build_reward(section)
    whole = [True] * 4
    scale_parts(section, tmp_path / "made", QUERIES, RESPONSES, whole)
    raw_KN = np.array([build_reward(RewardConfig(kind="preference", model=m))(QUERIES, RESPONSES) for m in models])
    scaled_KN = (raw_KN - raw_KN.mean(1, keepdims=True)) / raw_KN.std(1, keepdims=True)
    made = str(tmp_path / "made")
    assert build_reward(section, made)(QUERIES, RESPONSES) == pytest.approx(scaled_KN.min(0).tolist(), abs=1e-6)
    wary = section.model_copy(update={"combine": "uncertainty", "uncertainty_weight": 0.25})
    by_hand = scaled_KN.mean(0) - 0.25 * scaled_KN.var(0)
    assert build_reward(wary, made)(QUERIES, RESPONSES) == pytest.approx(by_hand.tolist(), abs=1e-6)

    total = RewardConfig.model_validate(
        {
            "kind": "sum",
            "terms": [
                {"weight": 3.0, "reward": section.model_dump()},
                {"reward": {"kind": "preference", "model": models[0]}},
            ],
        }
    )
    scale_parts(total, tmp_path / "sum", QUERIES, RESPONSES, whole)
    by_hand = 3.0 * scaled_KN.min(0) + raw_KN[0]
    assert build_reward(total, str(tmp_path / "sum"))(QUERIES, RESPONSES) == pytest.approx(by_hand.tolist(), abs=1e-6)


def test_which_members_a_run_trains():
    trained = RewardConfig(kind="ensemble", members=2, model="gpt2")
    assert trained.learned() == {"member_0": trained, "member_1": trained}
    assert list(trained.scaled()) == ["member_0", "member_1"]
    term = RewardConfig.model_validate({"kind": "sum", "terms": [{"reward": {"kind": "ensemble", "members": 2}}]})
    assert list(term.learned()) == ["term_0/member_0", "term_0/member_1"]
    existing = RewardConfig(kind="ensemble", models=["a", "b"])
    assert existing.learned() == {}
    assert [part.model for part in existing.scaled().values()] == ["a", "b"]
    judge = JudgeConfig(kind="ensemble", models=["a", "b"])
    assert (list(judge.learned()), list(judge.scaled())) == ([], ["member_0", "member_1"])
    assert list(JudgeConfig(kind="ensemble", members=2, pairs="held_out").learned()) == ["member_0", "member_1"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "ensemble", "members": 1}, "greater than or equal to 2"),
        ({"kind": "ensemble", "models": ["a"]}, "at least two existing preference models"),
        ({"kind": "ensemble", "models": ["a", "b"], "model": "c"}, "leave models out; model then says"),
        ({"kind": "preference", "models": ["a", "b"]}, "models is for kind ensemble"),
        ({"kind": "sum", "terms": [{"reward": {"kind": "ensemble"}}, {"reward": {"kind": "preference"}}]}, "at most"),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused(section, message):
    with pytest.raises(ValidationError, match=message):
        RewardConfig.model_validate(section)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "ensemble"}, "kind ensemble needs models, or pairs: held_out"),
        ({"kind": "ensemble", "models": ["a", "b"], "pairs": "held_out"}, "not ensemble with models"),
        ({"kind": "sum", "terms": [{"reward": {"kind": "ensemble", "models": ["a", "b"]}}]}, "leave ensembles out"),
    ],
)
def test_a_judge_that_cannot_be_an_ensemble_is_refused(section, message):
    with pytest.raises(ValidationError, match=message):
        JudgeConfig.model_validate(section)
