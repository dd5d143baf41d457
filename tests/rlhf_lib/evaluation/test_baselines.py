"""PPO beside best-of-n at its KL: by hand, in words, and as a plot."""

import numpy as np
import pytest

from rlhf_lib.evaluation import plots
from rlhf_lib.evaluation.baselines import Baselines, at_same_kl, trained_baselines
from rlhf_lib.evaluation.best_of_n import BestOfN, kl_bound
from rlhf_lib.evaluation.measures import win_matrix
from rlhf_lib.evaluation.report import build_report
from rlhf_lib.evaluation.results import SFT_ON_CHOSEN, BeforeAfter, Comparison, ModelResult, Sampled, Scored

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
    assert found.answer.endswith(f"{verdict} Best-of-n's bound is that large at n = 90.")


def test_a_negative_kl_counts_as_none_and_few_prompts_have_no_interval(best):
    assert at_same_kl(best, [1.0] * 40, -0.01).best_of_n == 1.5
    few = at_same_kl(BestOfN(PROMPTS[:2], best.scores_PN[:2]), [9.0, 9.0], 0.1)
    assert few.ci95 is None
    assert "a difference of +7.07 (no 95% interval: 2 prompts are too few)" in few.answer
    assert few.answer.endswith("The two can't be told apart.")


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


def test_trained_baselines_are_the_further_models_of_the_comparison(best):
    names, scores = ("reference", "policy", SFT_ON_CHOSEN), ([0.0, 1.0] * 20, [2.0] * 40, [1.0, 1.5] * 20)
    results = []
    for name, own in zip(names, scores, strict=True):
        sampled = Sampled([f"{score}" for score in own], own, [1] * 40, [True] * 40)
        first = None if name == "reference" else scores[0]
        kl = None if first is None else (0.75, 0.1)
        results.append(ModelResult.of(name, sampled, PROMPTS, first=first, kl=kl))
    compared = BeforeAfter(Comparison(PROMPTS, results, "reference", win_matrix(scores), True))
    negated = {"negated": lambda queries, responses: [-float(response) for response in responses]}
    ppo = Scored(scores[1], {"negated": [-score for score in scores[1]]})
    [chosen] = trained_baselines(compared, judges=negated, policy=ppo)
    assert chosen.record == {
        "reward": 1.25, "ci95": list(results[2].ci95), "kl": 0.75, "prompts": 40,
        "judges": {"negated": -1.25}, "judges_ci95": {"negated": pytest.approx([-1.325, -1.175], abs=0.02)},
        "lead": {"delta": 0.75, "ci95": pytest.approx([0.675, 0.825], abs=0.02)},
        "judges_lead": {"negated": {"delta": -0.75, "ci95": pytest.approx([-0.825, -0.675], abs=0.02)}},
    }  # fmt: skip
    both = Baselines(best, at_same_kl(best, [2.0] * 40, compared.kl), [chosen])
    report = build_report("t", compared, baselines=both)
    for page in (report.markdown(), report.html({})):
        assert "SFT on chosen answers" in page
        assert "as many answers, all chosen" in page
        assert both.same_kl.answer in page.replace("&#39;", "'")
        assert "By the judge negated, PPO is worse than SFT on chosen answers: -0.75 (95% interval -0.8" in page
    assert "| best of 2 | 2.33 | 2.33 to 2.33 | at most 0.193 | 40 |" in report.markdown()
    assert "| **PPO** | 2.00 | 2.00 to 2.00 | 0.750 | 40 |" in report.markdown()
    # a reference that learned from chosen answers alone is that baseline itself
    itself = BeforeAfter(Comparison(PROMPTS, results[:2], "reference", win_matrix(scores[:2]), True))
    [same] = trained_baselines(itself, chosen=True)
    assert (same.reward, same.kl) == (0.5, 0.0)
    assert "The reference is itself SFT on the chosen answers." in Baselines(others=[same]).notes()
    assert trained_baselines(itself) == []


def test_ppo_s_lead_over_best_of_n_is_paired_by_prompt():
    """Best of 2 has the judge at 5/3 for 0, 1, 2: every answer that PPO gives is 1/3 better."""
    judged = {"fair": np.tile(np.arange(3.0), (40, 1))}
    best = BestOfN(PROMPTS, np.tile(np.arange(3.0), (40, 1)), judged, policy=Scored([5 / 3] * 40, {"fair": [2.0] * 40}))
    two = best.baseline(2)
    assert (two.lead.delta, two.judges_lead["fair"].delta) == (pytest.approx(0), pytest.approx(1 / 3))
    assert two.told("fair").startswith("By the judge fair, PPO is better than best of 2: +0.333 (95% interval +0.333")
    assert Baselines(best).told() == [best.baseline(3).told("fair")]
    assert "can't be told apart: +0 (95%" in best.baseline(3).told("fair")
    few = BestOfN(PROMPTS[:2], best.scores_PN[:2], {"fair": best.scores_PN[:2]}, policy=best.policy.at([0, 1]))
    assert few.baseline(2).told("fair") == (
        "By the judge fair, PPO and best of 2: +0.333, no 95% interval: 2 prompts are too few."
    )
