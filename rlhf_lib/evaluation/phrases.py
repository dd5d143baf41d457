"""Which phrases carry the policy's gain: the word 4-grams that it says in more answers than the reference does, what
each earns, and how much of the reward's gain they account for together.

The account is that of Kitagawa (1955) and Oaxaca (1973). With d_i, what prompt i's score gained, and x_ip, whether
phrase p is in the policy's answer less whether it is in the reference's, least squares gives

    d_i = a + sum_p b_p x_ip + e_i,    so    mean(d) = a + sum_p b_p mean(x_p):

b_p is what the phrase earns, other phrases and the prompt held equal, and `share` is the sum's part of mean(d). The
phrases are picked by how often they are said, never by reward, so phrases that earn nothing have a share of about 0.
The interval is a bootstrap of whole prompts, given the picked phrases.

Limits: a phrase stands for whatever comes with it in an answer, and b_p is no effect of the words alone. What all of
the policy's answers and none of the reference's say can't be told from the rest of the gain and isn't counted (`earns`
is None). Ten phrases of four words miss a habit that is worded in many ways. A useful phrase counts as a stock phrase
does.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_lib.evaluation.measures import ngrams, words
from rlhf_lib.statistics import LEAST_FOR_INTERVAL, Interval, mean_interval

WORDS, MOST = 4, 10  # words in a phrase, phrases
LEAST_SHARE = 0.02  # of the policy's answers that hold a phrase, and five answers at least
SAME_ANSWERS = 0.8  # Jaccard similarity of two phrases' answers from which they count as one
RESAMPLES = 1000
WARN_SHARE = 0.5  # of the gain, most of it: a rule of thumb

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Phrase:
    """Shares of the reference's and of the policy's answers that hold it, and the score that goes with it; `earns` is
    None where that can't be told."""

    text: str
    before: float
    after: float
    earns: float | None


@dataclass(frozen=True)
class Phrases:
    """`share`: what the phrases account for of the reward's gain; None without a sure gain, with a handful of prompts
    or without phrases. `ci95` is its interval. `answers`: the share of the policy's answers that hold one of them."""

    phrases: list[Phrase] = field(default_factory=list)
    share: float | None = None
    ci95: Interval | None = None
    answers: float = 0.0

    @property
    def record(self) -> dict[str, Any]:
        """In JSON."""
        return asdict(self) | {"ci95": list(self.ci95) if self.ci95 else None}

    @property
    def metrics(self) -> dict[str, float]:
        """`share`, its interval and `answers`; what can't be told is left out."""
        found = {"answers": self.answers} if self.phrases else {}
        if self.share is not None and self.ci95 is not None:
            found |= {"share": self.share, "share_low": self.ci95[0], "share_high": self.ci95[1]}
        return {f"evaluation/phrases/{name}": value for name, value in found.items()}

    @property
    def warning(self) -> str | None:
        """That the gain is mostly these phrases', where even the interval's lower end is above WARN_SHARE; or that all
        of the policy's answers say the same."""
        everywhere = [phrase.text for phrase in self.phrases if phrase.earns is None]
        if everywhere:
            return (
                f"all of the policy's answers, and none of the reference's, say {everywhere[0]!r}: how much of the "
                "gain is that phrase's can't be told. Read the samples"
            )
        if self.share is None or self.ci95 is None or self.ci95[0] <= WARN_SHARE:
            return None
        earning = max(self.phrases, key=lambda phrase: (phrase.earns or 0) * (phrase.after - phrase.before))
        return (
            f"{len(self.phrases)} phrases account for {self.share:.0%} of the reward's gain (95% interval "
            f"{self.ci95[0]:.0%} to {self.ci95[1]:.0%}), first of all {earning.text!r}, in {earning.before:.0%} of the "
            f"answers before and {earning.after:.0%} after: the reward may pay for stock phrases. Read the samples, "
            "raise ppo.kl_coef, or see reward.checks.max_phrase_win_rate"
        )


def phrases_behind_gain(
    before: Sequence[str],
    after: Sequence[str],
    gains_N: Sequence[float],
    *,
    prompts: Sequence[Hashable],
    seed: int = 0,
) -> Phrases:
    """From the reference's and the policy's answers to N prompts, and what each prompt's score gained. Rows with equal
    `prompts` are resampled together."""
    picked, change_NP, said_NP = pick_phrases(before, after)
    if not picked:
        return Phrases()
    told_P = change_NP.std(axis=0) > 0
    gain_N = np.asarray(gains_N, dtype=np.float64)
    earns_P = np.full(len(picked), np.nan)
    earns_P[told_P] = earnings(change_NP[:, told_P], gain_N)
    after_P = said_NP.mean(axis=0)
    phrases = [
        Phrase(text, float(said - change), float(said), float(earned) if told else None)
        for text, said, change, earned, told in zip(
            picked, after_P, change_NP.mean(axis=0), earns_P, told_P, strict=True
        )
    ]
    answers = float(said_NP.any(axis=1).mean())
    interval = mean_interval(list(gains_N), clusters=prompts, seed=seed)
    if interval is None or interval[0] <= 0 or len(set(prompts)) < LEAST_FOR_INTERVAL or not told_P.any():
        return Phrases(phrases, answers=answers)
    share = explained(change_NP[:, told_P], gain_N)
    numbers: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        numbers.setdefault(prompt, []).append(row)
    groups, rng = list(numbers.values()), np.random.default_rng([seed, 7])
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        drawn.append(explained(change_NP[rows][:, told_P], gain_N[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Phrases(phrases, share, (float(low), float(high)), answers)


def pick_phrases(before: Sequence[str], after: Sequence[str]) -> tuple[list[str], Floats, Floats]:
    """(P phrases whose share of the answers rose most, at most MOST; whether the policy's answers hold them less
    whether the reference's do (N, P); whether the policy's do (N, P)). Of phrases in nearly the same answers the first
    counts, so a sentence isn't all ten."""
    sides = [[set(ngrams(words(text), WORDS)) for text in texts] for texts in (before, after)]
    holders: dict[tuple[str, ...], set[int]] = {}
    counts: dict[tuple[str, ...], int] = {}
    for row, held in enumerate(sides[1]):
        for gram in held:
            holders.setdefault(gram, set()).add(row)
    for held in sides[0]:
        for gram in held:
            counts[gram] = counts.get(gram, 0) + 1
    least = max(5.0, LEAST_SHARE * len(after))
    risen = [
        (len(rows) - counts.get(gram, 0), gram)
        for gram, rows in holders.items()
        if len(rows) >= least and len(rows) > counts.get(gram, 0)
    ]
    picked: list[tuple[str, ...]] = []
    for _, gram in sorted(risen, key=lambda one: (-one[0], one[1])):
        if len(picked) == MOST:
            break
        if all(len(holders[gram] & holders[p]) < SAME_ANSWERS * len(holders[gram] | holders[p]) for p in picked):
            picked.append(gram)
    before_NP, after_NP = (
        np.array([[gram in held for gram in picked] for held in side], dtype=np.float64) for side in sides
    )
    return [" ".join(gram) for gram in picked], after_NP - before_NP, after_NP


def earnings(change_NP: Floats, gain_N: Floats) -> Floats:
    """The slopes b (P,) of least squares with an intercept; of columns that say the same, the slopes of least norm."""
    slopes_P: Floats = np.linalg.lstsq(change_NP - change_NP.mean(axis=0), gain_N - gain_N.mean(), rcond=1e-8)[0]
    return slopes_P


def explained(change_NP: Floats, gain_N: Floats) -> float:
    """The part of the mean gain that the phrases account for: sum_p b_p mean(x_p) / mean(d)."""
    return float(earnings(change_NP, gain_N) @ change_NP.mean(axis=0) / gain_N.mean())
