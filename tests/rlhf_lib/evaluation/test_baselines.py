"""PPO beside best-of-n at its KL: by hand, in words, and as a plot."""

import numpy as np
import pytest

from rlhf_lib.evaluation import plots
from rlhf_lib.evaluation.baselines import Baselines, at_same_kl
from rlhf_lib.evaluation.best_of_n import BestOfN, kl_bound

PROMPTS = [f"q{i}" for i in range(40)]


@pytest.fixture
def best():
    """Answers scored 0, 1, 2, 3 to each of 40 prompts: best of 2 is 7/3, of 3 is 11/4, of 4 is 3."""
    return BestOfN(PROMPTS, np.tile(np.arange(4.0), (40, 1)))


@pytest.mark.parametrize(
    ("reached", "verdict"),
    [
        ([2.0, 2.2], "PPO bought less than best-of-n would have."),
        ([2.5, 3.0], "PPO bought more than best-of-n would have."),
        ([1.0, 4.0], "The two can't be told apart."),
    ],
)
def test_at_ppo_s_kl(best, reached, verdict):
    found = at_same_kl(best, reached * 20, kl_bound(2))
    assert found.n == pytest.approx(2)
    assert found.gain == pytest.approx(sum(reached) / 2 - 7 / 3)
    assert found.answer.startswith("At PPO's KL of 0.19 nats, best-of-n would reach 2.33 (n = 2.0); PPO reached ")
    assert found.answer.endswith(verdict)


@pytest.mark.parametrize(
    ("reached", "verdict"),
    [
        ([1.0, 1.2], "PPO bought less, for more KL."),
        ([4.0, 4.2], "PPO bought more, for more KL."),
        ([2.0, 4.0], "The two can't be told apart, though PPO's KL is larger."),
    ],
)
def test_beyond_the_largest_n(best, reached, verdict):
    found = at_same_kl(best, reached * 20, kl_bound(90))
    assert found.best_of_n == 3
    told = f"Best of 4 reaches 3 at a KL of at most 0.64 nats; PPO reached {sum(reached) / 2:.3g} at 3.51"
    assert found.answer.startswith(told)
    assert found.answer.endswith(f"{verdict} Best-of-n's KL is as large at n = 90.")


def test_a_negative_kl_counts_as_none_and_few_prompts_have_no_interval(best):
    assert at_same_kl(best, [1.0] * 40, -0.01).best_of_n == 1.5
    few = at_same_kl(BestOfN(PROMPTS[:2], best.scores_PN[:2]), [9.0, 9.0], 0.1)
    assert few.ci95 is None
    assert few.answer.endswith("+7.07 (no 95% interval: 2 prompts are too few). The two can't be told apart.")


def test_record_metrics_and_plot(best):
    found = Baselines(best, at_same_kl(best, [2.0] * 40, 0.5))
    assert list(found.record) == ["best_of_1", "best_of_2", "best_of_4"]
    assert found.metrics["baseline"]["same_kl"]["policy"] == 2
    figure = plots.baseline_curve(found)
    figure.canvas.draw()
    (curve,) = (line for line in figure.axes[0].lines if line.get_label() == "best of n")
    assert curve.get_ydata() == pytest.approx([3 / 2, 7 / 3, 11 / 4, 3])
    assert Baselines().record == {}
    assert Baselines().notes() == []
