"""evaluation.judges: what a judge may be, and that none is the reward itself."""

from __future__ import annotations

import pytest

from rlhf_lib.errors import RecipeError
from rlhf_lib.recipe import JudgeConfig, RewardConfig, load_recipe
from rlhf_lib.recipe.judges import check_judges, held_out_shares, is_rewarded

ROBERTA = {"kind": "classifier", "model": "roberta", "label": "joy"}
COUNT = {"kind": "function", "function": "words:count"}
SUM = {"kind": "sum", "terms": [{"reward": ROBERTA}, {"weight": -0.1, "reward": COUNT}]}
HELD_OUT = {"kind": "preference", "pairs": "held_out"}


def check(judge: dict, reward: dict, *, pairs: bool = True) -> None:
    check_judges(
        {"mine": JudgeConfig.model_validate(judge)}, RewardConfig.model_validate(reward), pairs=pairs, labelled=False
    )


@pytest.mark.parametrize(
    ("judge", "reward"),
    [
        (COUNT, COUNT),
        (ROBERTA | {"label": "anger"}, ROBERTA),  # another opinion of the same network
        (ROBERTA | {"kind": "pair"}, ROBERTA),
        ({"kind": "sum", "terms": [{"reward": COUNT}]}, COUNT),
        (SUM, SUM),
    ],
)
def test_the_reward_itself_is_refused(judge, reward):
    with pytest.raises(ValueError, match=r"evaluation\.judges\.mine is the reward itself, and so no judge"):
        check(judge, reward)


@pytest.mark.parametrize(
    ("judge", "reward"),
    [
        (COUNT, ROBERTA),
        (ROBERTA | {"model": "other"}, ROBERTA),
        (HELD_OUT, {"kind": "preference"}),
        (HELD_OUT | {"model": "gpt2"}, {"kind": "preference", "model": "gpt2"}),  # the same start, other pairs
        (COUNT, SUM),  # a part of it: reported
    ],
)
def test_anything_else_may_judge(judge, reward):
    check(judge, reward)


def test_a_part_of_the_reward_is_known_as_such():
    reward = RewardConfig.model_validate(SUM)
    assert is_rewarded(JudgeConfig.model_validate(COUNT), reward)
    assert not is_rewarded(JudgeConfig.model_validate(COUNT | {"function": "words:other"}), reward)
    assert not is_rewarded(JudgeConfig.model_validate(HELD_OUT), RewardConfig())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["helpful.kind=preference"], "kind preference needs model, or pairs: held_out to train one here"),
        (["helpful.kind=classifier"], "kind classifier needs model"),
        (["helpful={kind: function, function: 'a:b', pairs: held_out}"], "pairs: held_out is for kind preference"),
        (["a b={kind: function, function: 'a:b'}"], "evaluation.judges.a b"),
        (["h={pairs: held_out, share: 0.6}", "i={pairs: held_out, share: 0.4}"], "leave no pairs to train the reward"),
        (["h={pears: held_out}"], "unknown key 'evaluation.judges.h.pears': did you mean 'pairs'?"),
    ],
)
def test_a_judge_that_can_t_be_is_one_line(overrides, says):
    with pytest.raises(RecipeError) as raised:
        load_recipe("embedded", [f"evaluation.judges.{override}" for override in overrides])
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_held_out_pairs_need_pairs():
    with pytest.raises(ValueError, match=r"evaluation\.judges\.mine: pairs: held_out needs data\.preferences"):
        check(HELD_OUT, COUNT, pairs=False)


def test_judges_are_named_on_the_command_line():
    recipe = load_recipe("embedded", ["evaluation.judges.other.pairs=held_out", "evaluation.judges.other.share=0.25"])
    assert held_out_shares(recipe.evaluation.judges) == {"other": 0.25}


def test_a_judge_follows_the_rewards_label():
    judge = "evaluation.judges.other={kind: classifier, model: some/other, label: reward.label}"
    recipe = load_recipe("gpt2-imdb-positive", [judge, "reward.label=NEGATIVE"])
    assert {name: judge.label for name, judge in recipe.evaluation.judges.items()} == {
        "siebert": "NEGATIVE",
        "other": "NEGATIVE",
    }
    with pytest.raises(RecipeError, match=r"evaluation\.judges\.other\.label is reward\.label, which is null: name"):
        load_recipe("embedded", [judge])
