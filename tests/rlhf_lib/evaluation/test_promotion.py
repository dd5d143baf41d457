"""The gates of promotion, on figures made by hand."""

import math

import pytest

from rlhf_lib.evaluation.promotion import judge
from rlhf_lib.recipe import GatesConfig


def figures(**changes):
    return {
        "reward": {"reference": 0.1, "policy": 0.6, "delta": 0.5, "ci95": [0.3, 0.7], "win_rate": 0.9}
        | {"prompts": 256},
        "perplexity": {
            "reference": 20.0,
            "policy": 30.0,
            "mean_per_text_reference": 25.0,
            "mean_per_text_policy": 40.0,
        },
        "diversity": {"distinct_2_reference": 0.8, "distinct_2_policy": 0.6},
        "kl": 4.0,
        "report": "report.html",
    } | changes


def verdicts(gates):
    return [(g["name"], g["figure"], g["threshold"], g["passed"]) for g in gates]


def test_a_model_that_learned_answers_alone_is_judged_by_their_perplexity():
    answers = {"answer_perplexity": {"reference": 2.0, "policy": 5.0}}
    for trained_on, ratio in (("texts", 1.5), ("answers", 2.5)):
        passed, gates, reason = judge(GatesConfig(), figures(trained_on=trained_on, **answers), None)
        assert passed == (ratio < 2)
        assert [gate["figure"] for gate in gates if gate["name"] == "max_perplexity_ratio"] == [ratio]
    assert "perplexity of the answers went from 2 to 5, a ratio of 2.5, which must be at most 2" in reason
    none = judge(GatesConfig(), figures(trained_on="answers", answer_perplexity=None), None)
    assert [gate["figure"] for gate in none[1] if gate["name"] == "max_perplexity_ratio"] == [1.5]


def test_all_gates_pass_and_say_their_figures():
    passed, gates, reason = judge(GatesConfig(max_kl=5.0), figures(), None)
    assert passed
    assert verdicts(gates) == [
        ("min_prompts", 256, 50, True),
        ("min_reward_delta", 0.3, 0.0, True),
        ("max_perplexity_ratio", 1.5, 2.0, True),
        ("max_kl", 4.0, 5.0, True),
        ("min_distinct_2_ratio", pytest.approx(0.75), 0.5, True),
    ]
    assert reason == (
        "all gates passed, and there was no champion; the mean score gained over the reference is +0.5 (95% interval "
        "0.3 to 0.7, 256 prompts)"
    )


REWARD = figures()["reward"]


@pytest.mark.parametrize(
    ("change", "gate", "says"),
    [
        (
            {"reward": REWARD | {"prompts": 49}},
            "min_prompts",
            "the number of evaluation prompts is 49 and must be at least 50 (evaluation.prompts and "
            "data.prompts.held_out or .test set it)",
        ),
        (
            {"reward": REWARD | {"ci95": [0.0, 0.4], "delta": 0.2}},
            "min_reward_delta",
            "the mean score gained over the reference is +0.2 (95% interval 0 to 0.4, 256 prompts); the interval's "
            "lower end must be above 0",
        ),
        (
            {"reward": REWARD | {"ci95": [math.nan, 1.0]}},
            "min_reward_delta",
            "the mean score gained over the reference is +0.5 (95% interval nan to 1, 256 prompts); the interval's "
            "lower end must be above 0",
        ),
        (
            {"perplexity": {"reference": 10.0, "policy": 21.0}},
            "max_perplexity_ratio",
            "perplexity went from 10 to 21, a ratio of 2.1, which must be at most 2",
        ),
        ({"kl": 5.5}, "max_kl", "the KL to the reference is 5.5 nats per response and must be at most 5"),
        (
            {"diversity": {"distinct_2_reference": 0.8, "distinct_2_policy": 0.2}},
            "min_distinct_2_ratio",
            "distinct-2 went from 0.8 to 0.2, a ratio of 0.25, which must be at least 0.5",
        ),
    ],
)
def test_each_gate_bites_alone_and_names_its_figure(change, gate, says):
    passed, gates, reason = judge(GatesConfig(max_kl=5.0), figures(**change), None)
    assert not passed
    assert [g["name"] for g in gates if not g["passed"]] == [gate]
    assert reason == f"{gate}: {says}"


def test_a_handful_of_prompts_is_judged_by_its_mean_only_where_the_recipe_allows_it():
    few = figures(reward=REWARD | {"delta": 0.003, "ci95": None, "prompts": 1})
    passed, _, reason = judge(GatesConfig(), few, None)
    assert not passed
    assert reason.startswith("min_prompts: ")
    passed, gates, reason = judge(GatesConfig(min_prompts=None), few, None)
    assert passed
    assert verdicts(gates)[0] == ("min_reward_delta", 0.003, 0.0, True)
    assert reason.endswith("the mean score gained over the reference is +0.003 (no 95% interval: 1 prompt is too few)")


def test_training_prompts_promote_only_where_the_recipe_says_so():
    trained_on = figures(held_out=False)
    passed, gates, reason = judge(GatesConfig(), trained_on, None)
    assert not passed
    assert verdicts(gates)[-1] == ("held_out", 0.0, 1.0, False)
    assert reason == (
        "held_out: it was evaluated on its training prompts, since data.prompts.held_out is 0; set "
        "registration.gates.allow_unheld to true to promote it all the same"
    )
    few = trained_on | {"reward": REWARD | {"ci95": None, "prompts": 8}}  # of a closed set there are no more
    passed, gates, _ = judge(GatesConfig(allow_unheld=True), few, None)
    assert passed
    assert "held_out" not in [gate["name"] for gate in gates]


def test_thresholds_themselves_pass_where_they_are_limits():
    at_limit = figures(
        perplexity={"reference": 10.0, "policy": 20.0},
        diversity={"distinct_2_reference": 0.8, "distinct_2_policy": 0.4},
        kl=5.0,
    )
    assert judge(GatesConfig(max_kl=5.0), at_limit, None)[0]


def test_gates_switched_off_or_without_figure_are_left_out():
    off = GatesConfig.model_validate(dict.fromkeys(set(GatesConfig.model_fields) - {"allow_unheld"}))
    assert judge(off, figures(), None)[:2] == (True, [])
    gates = judge(GatesConfig(), figures(perplexity=None), None)[1]
    assert [g["name"] for g in gates] == ["min_prompts", "min_reward_delta", "max_kl", "min_distinct_2_ratio"]


def test_the_default_cap_on_the_kl_is_above_what_shipped_recipes_reach():
    assert judge(GatesConfig(), figures(kl=8.3), None)[0]
    assert judge(GatesConfig(), figures(kl=30.8), None)[2].startswith("max_kl: ")


JUDGED = {"reference": 0.2, "policy": 0.1, "delta": -0.1, "ci95": [-0.2, 0.05], "prompts": 256, "only_reports": None}


def test_every_judge_must_find_the_policy_better_too():
    better = JUDGED | {"delta": 0.1, "ci95": [0.05, 0.2]}
    passed, gates, _ = judge(GatesConfig(), figures(judges={"a": better, "b": better}), None)
    assert passed
    assert verdicts(gates)[2:4] == [("judge/a", 0.05, 0.0, True), ("judge/b", 0.05, 0.0, True)]
    passed, _, reason = judge(GatesConfig(), figures(judges={"a": better, "b": JUDGED}), None)
    assert not passed
    assert reason == (
        "judge/b: the mean gained by judge b over the reference is -0.1 (95% interval -0.2 to 0.05, 256 prompts); the "
        "interval's lower end must be above 0"
    )
    silent = JUDGED | {"only_reports": "its gate is false"}
    assert judge(GatesConfig(), figures(judges={"b": silent}), None)[0]
    assert judge(GatesConfig(min_judge_delta=None), figures(judges={"b": JUDGED}), None)[0]


DUEL = {"delta": 0.2, "ci95": [0.1, 0.3], "version": "1", "prompts": 200}


def test_the_champion_must_be_beaten_beyond_doubt():
    passed, gates, reason = judge(GatesConfig(), figures(), DUEL)
    assert passed
    assert verdicts(gates)[-1] == ("beats_champion", 0.1, 0.0, True)
    assert reason == (
        "all gates passed, and the mean score gained over the champion is +0.2 (95% interval 0.1 to 0.3, 200 prompts)"
    )


def test_the_champion_must_be_beaten_under_its_own_reward_too():
    theirs = {"delta": 0.3, "ci95": [0.2, 0.4], "prompts": 200}
    passed, gates, reason = judge(GatesConfig(), figures(), DUEL | {"champion_reward": theirs})
    assert passed
    assert verdicts(gates)[-2:] == [
        ("beats_champion", 0.1, 0.0, True),
        ("beats_champion_by_its_reward", 0.2, 0.0, True),
    ]
    assert reason.endswith(
        "+0.2 (95% interval 0.1 to 0.3, 200 prompts), under the champion's own reward +0.3 (95% interval 0.2 to 0.4, "
        "200 prompts)"
    )
    passed, _, reason = judge(GatesConfig(), figures(), DUEL | {"champion_reward": theirs | {"ci95": [-0.1, 0.7]}})
    assert not passed
    assert reason == (
        "beats_champion_by_its_reward: the mean score gained over the champion (version 1) under the champion's own "
        "reward is +0.3 (95% interval -0.1 to 0.7, 200 prompts); the interval's lower end must be above 0"
    )
    passed, gates, reason = judge(GatesConfig(), figures(), DUEL | {"champion_reward": {"error": "it is gone"}})
    assert passed
    assert verdicts(gates)[-1][0] == "beats_champion"
    assert reason.endswith("; under this policy's reward alone, since the champion's can't be had: it is gone")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"delta": -0.0079, "ci95": [-0.01585, 0.001]},
            "the mean score gained over the champion (version 1) is -0.0079 (95% interval -0.01585 to 0.001, 200 "
            "prompts); the interval's lower end must be above 0",
        ),
        (
            {"prompts": 40},
            "40 of the evaluation prompts are short enough for both this policy and the champion (version 1), but "
            "there must be at least 50 (min_prompts)",
        ),
        ({"error": "it is gone"}, "no comparison with the champion (version 1): it is gone"),
    ],
)
def test_a_champion_keeps_its_place_and_the_reason_says_why(change, says):
    passed, gates, reason = judge(GatesConfig(), figures(), DUEL | change)
    assert not passed
    assert gates[-1]["name"] == "beats_champion"
    assert reason == f"beats_champion: {says}"
