"""What became of the judges while PPO learnt, in words and in a picture."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lib.evaluation.best_of_n import BestOfN, kl_bound
from rlhf_lib.evaluation.judges import judge_policy
from rlhf_lib.evaluation.overoptimization import REWARD, Course
from rlhf_lib.evaluation.overoptimization_plot import overoptimization
from rlhf_lib.evaluation.report import build_report
from tests.rlhf_lib.evaluation.test_judges import built, recipe
from tests.rlhf_lib.evaluation.test_metrics import compared


def evaluated(*rows: tuple[float, float, float]) -> list[dict[str, float]]:
    """From KL, reward and what the judge `short` gave, an evaluation every 5 steps."""
    return [
        {"step": 5.0 * i, "eval/kl": kl, REWARD: reward, "eval/judge/short": judged, "eval/std_scores": 1.0}
        for i, (kl, reward, judged) in enumerate(rows)
    ]


HACKED = evaluated((-0.01, 1.0, 0.5), (1.0, 2.0, 0.75), (4.0, 3.0, 0.5), (9.0, 3.5, 0.25))


def course(evaluations: list[dict[str, float]], kept: int = 15, **options) -> Course:
    found = Course.of(evaluations, kept, "selection", **options)
    assert found is not None
    return found


def test_the_course_is_of_the_reward_and_the_judges():
    found = course(HACKED)
    assert found.steps == [0, 5, 10, 15]
    assert found.roots == [0.0, 1.0, 2.0, 3.0]
    assert list(found.values) == [REWARD, "eval/judge/short"]
    assert found.gains(REWARD) == [0.0, 1.0, 2.0, 2.5]
    assert found.gains("eval/judge/short") == [0.0, 0.25, 0.0, -0.25]
    assert Course.of(HACKED[:1], 0, "selection") is None
    assert Course.of([{"step": 5.0, "eval/kl": 1.0, REWARD: 2.0}] * 2, 5, "evaluation") is None  # no judge
    assert Course.of([], 5, "evaluation") is None


@pytest.mark.parametrize(
    ("evaluations", "says"),
    [
        (HACKED, "peaked at step 5 (KL 1.00) and fell by 0.5 since, while the reward rose by 1.5."),
        (
            evaluated((0.0, 1.0, 0.5), (1.0, 0.5, 0.25)),
            "was highest before training and fell by 0.25 since, as the reward fell by 0.5.",
        ),
        (
            HACKED[:2],
            "was highest at the last evaluation (step 5 (KL 1.00)): +0.25 from before training, and +1 by the reward.",
        ),
    ],
)
def test_what_became_of_a_judge_is_told(evaluations, says):
    assert course(evaluations, kept=course(evaluations).last).sentences == [f"Judge short {says}"]


def test_what_was_made_of_it_is_told():
    told = course(HACKED, kept=5, stopped="judge short was below its best").sentences
    assert told[1:] == [
        "PPO stopped after step 15: judge short was below its best.",
        "The policy of step 5 is exported and evaluated here, not that of step 15.",
    ]


def test_the_picture_has_a_panel_each_in_gains():
    comparison = compared(["x"] * 40, ["xxx"] * 40)
    judged, _ = judge_policy(recipe("brevity"), comparison, built("brevity"), None)
    best = BestOfN(["a"], np.array([[0.0, 2.0]]), {"short": np.array([[-1.0, -3.0]])})
    figure = overoptimization(course(HACKED, kept=5), best, comparison, judged)
    reward, judge = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Reward, which PPO optimises", "Judge short"]
    lines = {line.get_label(): line for line in judge.get_lines()}
    assert lines["PPO, by step"].get_xdata().tolist() == [0.0, 1.0, 2.0, 3.0]
    assert lines["PPO, by step"].get_ydata().tolist() == [0.0, 0.25, 0.0, -0.25]
    drawn = lines["best of n by the reward, n to 2"]
    assert drawn.get_xdata().tolist() == [0.0, kl_bound(2) ** 0.5]
    assert drawn.get_ydata().tolist() == [0.0, -1.0]  # of two answers the reward picks the better: 1 more, 1 less
    assert {line.get_label(): line for line in reward.get_lines()}[drawn.get_label()].get_ydata().tolist() == [0.0, 1.0]
    marks = {each.get_label(): each.get_offsets().tolist() for each in judge.collections}
    assert marks["exported step (5)"] == marks["the judge's peak"] == [[1.0, 0.25]]
    assert marks["exported, evaluation's prompts"] == [[max(comparison.kl, 0.0) ** 0.5, -2.0]]
    page = build_report("t", comparison, judges=judged, course=course(HACKED)).markdown()
    assert "## While it learnt\n\n- Judge short peaked at step 5 (KL 1.00)" in page
    assert "means over training prompts that weren't trained on" in page
