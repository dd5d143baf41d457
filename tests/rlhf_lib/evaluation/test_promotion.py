"""The gates of promotion, on figures made by hand."""

import math

import pytest

from rlhf_lib.evaluation.promotion import judge
from rlhf_lib.recipe import GatesConfig


def figures(**changes):
    return {
        "reward": {"reference": 0.1, "policy": 0.6, "delta": 0.5, "ci95": [0.3, 0.7], "win_rate": 0.9},
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


def test_all_gates_pass_and_say_their_figures():
    passed, gates, reason = judge(GatesConfig(max_kl=5.0), figures(), None)
    assert passed
    assert gates == [
        {"name": "min_reward_delta", "figure": 0.3, "threshold": 0.0, "passed": True},
        {"name": "max_perplexity_ratio", "figure": 1.5, "threshold": 2.0, "passed": True},
        {"name": "max_kl", "figure": 4.0, "threshold": 5.0, "passed": True},
        {"name": "min_distinct_2_ratio", "figure": pytest.approx(0.75), "threshold": 0.5, "passed": True},
    ]
    assert "no champion" in reason


@pytest.mark.parametrize(
    ("change", "gate", "says"),
    [
        ({"reward": figures()["reward"] | {"ci95": [0.0, 0.4]}}, "min_reward_delta", "0 is not above 0"),
        ({"reward": figures()["reward"] | {"ci95": [math.nan, 1.0]}}, "min_reward_delta", "nan is not above 0"),
        ({"perplexity": {"reference": 10.0, "policy": 21.0}}, "max_perplexity_ratio", "2.1 is not at most 2"),
        ({"kl": 5.5}, "max_kl", "5.5 is not at most 5"),
        (
            {"diversity": {"distinct_2_reference": 0.8, "distinct_2_policy": 0.2}},
            "min_distinct_2_ratio",
            "0.25 is not at least 0.5",
        ),
    ],
)
def test_each_gate_bites_alone(change, gate, says):
    passed, gates, reason = judge(GatesConfig(max_kl=5.0), figures(**change), None)
    assert not passed
    assert [g["name"] for g in gates if not g["passed"]] == [gate]
    assert reason == f"{gate}: {says}"


def test_training_prompts_promote_only_where_the_recipe_says_so():
    trained_on = figures(held_out=False)
    passed, gates, reason = judge(GatesConfig(), trained_on, None)
    assert not passed
    assert gates[-1] == {"name": "held_out", "figure": 0.0, "threshold": 1.0, "passed": False}
    assert reason == (
        "held_out: it was evaluated on its training prompts, since data.prompts.held_out is 0; set "
        "registration.gates.allow_unheld to true to promote it all the same"
    )
    passed, gates, _ = judge(GatesConfig(allow_unheld=True), trained_on, None)
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
    off = GatesConfig(min_reward_delta=None, max_perplexity_ratio=None, min_distinct_2_ratio=None)
    assert judge(off, figures(), None)[:2] == (True, [])
    gates = judge(GatesConfig(), figures(perplexity=None), None)[1]
    assert [g["name"] for g in gates] == ["min_reward_delta", "min_distinct_2_ratio"]


def test_the_champion_must_be_beaten_beyond_doubt():
    duel = {"delta": 0.2, "ci95": [0.1, 0.3], "version": "1"}
    passed, gates, reason = judge(GatesConfig(), figures(), duel)
    assert passed
    assert gates[-1] == {"name": "beats_champion", "figure": 0.1, "threshold": 0.0, "passed": True}
    assert "+0.2 [0.1, 0.3]" in reason
    passed, gates, reason = judge(GatesConfig(), figures(), duel | {"ci95": [-0.1, 0.3]})
    assert not passed
    assert reason == "beats_champion: -0.1 is not above 0"
    passed, gates, reason = judge(GatesConfig(), figures(), {"error": "it is gone", "version": "1"})
    assert not passed
    assert gates[-1]["figure"] is None
    assert "it is gone" in reason
