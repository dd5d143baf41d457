"""Phrases behind a gain: which are picked, what they earn and what share is theirs, by hand and against chance."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rlhf_lib.evaluation.phrases import Phrase, Phrases, earnings, explained, phrases_behind_gain, pick_phrases
from rlhf_lib.evaluation.report import build_report
from tests.rlhf_lib.evaluation.test_metrics import compared

STOCK = "please do not worry"


def answers(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(900)}" for _ in range(8)) for _ in range(count)]


def test_of_a_sentence_one_phrase_is_picked():
    before = answers(40, 0)
    before[0] += " the cat sat down"
    after = answers(40, 1)
    after[:20] = [f"{text} please do not worry about that" for text in after[:20]]
    after[15:19] = [f"{text} the cat sat down" for text in after[15:19]]
    after[30:33] = [f"{text} the cat sat down" for text in after[30:33]]
    picked, change, said = pick_phrases(before, after)
    assert picked == ["do not worry about", "the cat sat down"]
    assert (said.sum(axis=0).tolist(), change.sum(axis=0).tolist()) == ([20.0, 7.0], [20.0, 6.0])
    assert pick_phrases(after, before)[0] == []


def test_the_account_adds_up():
    """Gains of 3 where the phrase came in, 1 where it didn't, 1 in three of four: it earns 2, and 1.5 of 2.5 is its."""
    change = np.array([[1.0], [1.0], [1.0], [0.0]])
    gain = np.array([3.0, 3.0, 3.0, 1.0])
    assert earnings(change, gain).tolist() == pytest.approx([2.0])
    assert explained(change, gain) == pytest.approx(2 * 0.75 / 2.5)
    twice = np.hstack([change, change])  # can't be told apart: together as one
    assert earnings(twice, gain).tolist() == pytest.approx([1.0, 1.0])
    assert explained(twice, gain) == pytest.approx(0.6)


def gamed(count: int, pay: float, base: float) -> Phrases:
    """Two thirds of the answers end in the stock phrase, which pays `pay`; everything gains `base`, give or take."""
    draw = np.random.default_rng(0)
    stock = [i % 3 > 0 for i in range(count)]
    after = [f"{text} {STOCK}" if said else text for text, said in zip(answers(count, 1), stock, strict=True)]
    gains = base + pay * np.array(stock) + draw.normal(0, 0.3, count)
    return phrases_behind_gain(answers(count, 0), after, gains.tolist(), prompts=range(count))


def test_a_gain_that_one_phrase_carries_is_warned_of():
    found = gamed(150, pay=3.0, base=0.2)
    (phrase,) = found.phrases
    assert (phrase.text, phrase.before, phrase.after) == (STOCK, 0.0, pytest.approx(2 / 3))
    assert phrase.earns == pytest.approx(3.0, abs=0.15)
    assert found.share == pytest.approx(2 / 2.2, abs=0.05)
    assert found.ci95[0] < found.share < found.ci95[1]
    assert found.answers == pytest.approx(2 / 3)
    assert f"'{STOCK}', in 0% of the answers before and 67% after" in found.warning
    assert found.metrics["evaluation/phrases/share"] == found.share


def test_a_phrase_that_earns_nothing_has_no_share():
    found = gamed(150, pay=0.0, base=1.0)
    assert found.share == pytest.approx(0, abs=0.1)
    assert found.ci95[1] < 0.3
    assert found.warning is None


def test_what_everyone_says_cannot_be_told_from_the_rest():
    after = [f"{text} {STOCK}" for text in answers(40, 1)]
    found = phrases_behind_gain(answers(40, 0), after, [1.0, 2.0] * 20, prompts=range(40))
    assert found.phrases == [Phrase(STOCK, 0.0, 1.0, None)]
    assert (found.share, found.answers) == (None, 1.0)
    assert f"all of the policy's answers, and none of the reference's, say '{STOCK}'" in found.warning


def test_no_share_without_a_sure_gain_or_prompts_enough():
    assert gamed(150, pay=0.0, base=0.0).share is None
    few = [f"{text} {STOCK}" for text in answers(9, 1)] + answers(1, 2)
    assert phrases_behind_gain(answers(10, 0), few, [1.0] * 10, prompts=range(10)).share is None
    assert phrases_behind_gain(answers(30, 0), answers(30, 1), [1.0] * 30, prompts=range(30)) == Phrases()


def test_answers_to_one_prompt_are_resampled_together():
    """Each prompt asked three times, with the same answers: as wide as with 50 prompts, not as with 150."""
    alone = gamed(51, pay=3.0, base=0.2)
    draw = np.random.default_rng(0)
    stock = [i % 3 > 0 for i in range(51)]
    gains = (0.2 + 3 * np.array(stock) + draw.normal(0, 0.3, 51)).tolist()
    after = [f"{text} {STOCK}" if said else text for text, said in zip(answers(51, 1), stock, strict=True)]
    found = phrases_behind_gain(answers(51, 0) * 3, after * 3, gains * 3, prompts=[*range(51)] * 3)
    assert found.share == pytest.approx(alone.share)
    width, other = (one.ci95[1] - one.ci95[0] for one in (found, alone))
    assert width == pytest.approx(other, rel=0.15)


def test_the_report_shows_them():
    found = gamed(150, pay=3.0, base=0.2)
    report = build_report("t", compared(["x"] * 40, ["xxx"] * 40), phrases=found, warnings=[found.warning])
    for page in (report.html({}), report.markdown()):
        assert "Phrases behind the gain" in page
        assert STOCK in page
    assert f"| {STOCK} | 0% | 67% | +3" in report.markdown()
    assert "Phrases behind" not in build_report("t", compared(["x"], ["y"])).markdown()
