"""From several annotators' rankings, and from thumbs, to preference pairs: every ranking of N responses is a vote on
each of its N-choose-2 pairs (Ouyang et al. 2022, section 3.5), and what is made of the votes is the consensus.

Votes are kept by prompt and by the responses' texts, so that rounds of annotation join: the same two responses in
another task are judged together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import krippendorff
import numpy as np

from rlhf_lib.data.rankings.files import Ranking, Rejected, Thumb, read_feedback, read_rankings, read_tasks
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import RankingsConfig

Agreement = dict[str, dict[str, float | None]]


def judgements(rankings: Sequence[Ranking]) -> tuple[list[str], np.ndarray]:
    """The annotators, sorted, and their judgement of every pair: (A, U), NaN where they didn't judge it."""
    names = sorted({ranking.annotator for ranking in rankings})
    units: dict[tuple[str, str, str], int] = {}
    entries = []
    for ranking in rankings:
        for first, second in combinations(ranking.task.responses, 2):
            unit = units.setdefault((ranking.task.id, first, second), len(units))
            value = np.sign(ranking.ranks[second] - ranking.ranks[first])
            entries.append((names.index(ranking.annotator), unit, value))
    values_AU = np.full((len(names), len(units)), np.nan)
    for row, unit, value in entries:
        values_AU[row, unit] = value
    return names, values_AU


def alpha(values_AU: np.ndarray) -> float | None:
    """Krippendorff's alpha over -1, 0, +1, ordinal, each unit in both orders: 1 is full agreement, 0 chance. None if no
    unit has two judgements, or all are ties."""
    shared_AU = values_AU[:, (~np.isnan(values_AU)).sum(axis=0) > 1]
    if not shared_AU.size or not np.nansum(np.abs(shared_AU)):
        return None
    return float(krippendorff.alpha(np.hstack([shared_AU, -shared_AU]), level_of_measurement="ordinal"))


def annotator_agreement(names: Sequence[str], values_AU: np.ndarray) -> Agreement:
    """For each annotator: `alpha` against the majority of the others where they have one, `agreement` (the share of
    equal judgements over all the other annotators and the pairs that both judged), `pairs` judged, `ties` as a share
    of them. Metrics without a pair in common are None."""
    judged_AU = ~np.isnan(values_AU)
    found: Agreement = {}
    for row, name in enumerate(names):
        others = np.arange(len(names)) != row
        equal, shared = (values_AU[others] == values_AU[row]).sum(), (judged_AU[others] & judged_AU[row]).sum()
        pairs = int(judged_AU[row].sum())
        found[name] = {
            "alpha": alpha(np.vstack([values_AU[row], majority(values_AU[others])])),
            "agreement": float(equal / shared) if shared else None,
            "pairs": pairs,
            "ties": float((values_AU[row] == 0).sum() / pairs),
        }
    return found


def agreement_matrix(values_AU: np.ndarray) -> list[list[float | None]]:
    """(A, A): the share of equal judgements of every two annotators; None if they judged no pair in common."""
    judged_AU = ~np.isnan(values_AU)
    shared_AA = judged_AU.astype(int) @ judged_AU.T.astype(int)
    equal_AA = (values_AU[:, None] == values_AU[None]).sum(axis=-1)
    return [
        [float(e / n) if n else None for e, n in zip(*rows, strict=True)]
        for rows in zip(equal_AA, shared_AA, strict=True)
    ]


def majority(values_AU: np.ndarray) -> np.ndarray:
    """(U,): the sign of the sum of judgements, so that ties don't count. NaN where nobody judged or the votes are even:
    an annotator compared with a divided panel would look bad either way."""
    total_U = np.nansum(values_AU, axis=0)
    unanimous_tie_U = (np.nan_to_num(values_AU) == 0).all(axis=0) & ~np.isnan(values_AU).all(axis=0)
    return np.where((total_U == 0) & ~unanimous_tie_U, np.nan, np.sign(total_U))


def flagged(found: Mapping[str, Mapping[str, float | None]], below: float) -> list[str]:
    """Annotators whose alpha against the others is below the threshold."""
    return [name for name, metrics in found.items() if (a := metrics["alpha"]) is not None and a < below]


PRIOR = 0.1  # precision of the Gaussian prior on strengths: 3 votes to 0 are a difference of 2.9, and not infinity
EVEN = 1e-3  # differences of strength that are a tie


class Preferred(NamedTuple):
    """A pair of the consensus. `margin`: in (0, 1] the votes' share for less that against (ties count as neither), or
    the difference of Bradley-Terry strengths."""

    prompt: str
    chosen: str
    rejected: str
    margin: float


@dataclass
class Feedback:
    """What the files contain. `report` holds counts; `rejected` the unusable rows, each with its reason."""

    pairs: list[Preferred]
    criterion: str | None
    alpha: float | None = None
    annotators: Agreement = field(default_factory=dict)
    matrix: list[list[float | None]] = field(default_factory=list)
    flagged: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


def gather(settings: RankingsConfig) -> Feedback:
    """Read, compare and condense the files that data.preferences.rankings names.

    Raises DataError for unreadable files, if nothing usable is left, and for several criteria in one set.
    """
    rejected: list[Rejected] = []
    rankings: list[Ranking] = []
    thumbs: list[Thumb] = []
    if settings.rankings:
        tasks, rejected = read_tasks(settings.tasks)
        rankings, bad = read_rankings(settings.rankings, tasks)
        rejected = rejected + bad
    if settings.feedback:
        thumbs, bad = read_feedback(settings.feedback)
        rejected = rejected + bad
    report: dict[str, Any] = {"rejected": dict(Counter(row.reason for row in rejected)), "dropped": {}}
    report |= {"rankings": len(rankings), "thumbs": len(thumbs)}
    criterion = _criterion(settings, [r.task.criterion for r in rankings] + [t.criterion for t in thumbs])

    def keep(reason: str, wanted: Any, key: str) -> None:
        nonlocal rankings, thumbs
        before = len(rankings) + len(thumbs)
        rankings, thumbs = [r for r in rankings if wanted(r)], [t for t in thumbs if wanted(t)]
        report["dropped"][reason] = before - len(rankings) - len(thumbs)
        if not rankings and not thumbs:
            raise DataError(
                f"data.preferences.rankings: filter '{reason}' left none of {before} rankings and thumbs. Change "
                f"data.preferences.rankings.{key}"
            )

    def of(item: Ranking | Thumb) -> str | None:
        return item.task.criterion if isinstance(item, Ranking) else item.criterion

    keep("another criterion", lambda item: of(item) in (None, criterion), "criterion")
    if settings.annotators is not None:
        wanted = set(settings.annotators)
        keep("annotator not asked for", lambda item: item.annotator in wanted, "annotators")
    found = Feedback([], criterion, rejected=rejected, report=report)
    if rankings:
        names, values_AU = judgements(rankings)
        found.alpha, found.matrix = alpha(values_AU), agreement_matrix(values_AU)
        found.annotators = annotator_agreement(names, values_AU)
        found.flagged = flagged(found.annotators, settings.flag_below)
    if settings.drop_flagged:
        keep("annotator flagged", lambda item: item.annotator not in found.flagged, "flag_below")

    pairs, ties = ranked_pairs(rankings, settings.consensus)
    report["pairs"] = {"from rankings": len(pairs), "ties": ties}
    if thumbs:
        thumbed, counts = thumb_pairs(thumbs)
        ranked = {(pair.prompt, frozenset((pair.chosen, pair.rejected))) for pair in pairs}
        new = [pair for pair in thumbed if (pair.prompt, frozenset((pair.chosen, pair.rejected))) not in ranked]
        report["pairs"] |= counts | {"from thumbs": len(new), "ranked already": len(thumbed) - len(new)}
        pairs = pairs + new
    if not pairs:
        raise DataError(
            f"data.preferences.rankings: {len(rankings)} rankings and {len(thumbs)} thumbs give no pair ({ties} ties): "
            "no response is preferred to another one of its prompt"
        )
    found.pairs = pairs
    return found


def ranked_pairs(rankings: Sequence[Ranking], consensus: str) -> tuple[list[Preferred], int]:
    """The pairs of `majority`, `bradley_terry` or `none`, preferred first, and the number of pairs that end in a tie:
    these give none. Pairs of one text with itself are neither."""
    prompts: dict[str, dict[tuple[str, str], list[int]]] = defaultdict(dict)
    for ranking in rankings:
        votes = prompts[ranking.task.prompt]
        for one, other in combinations(ranking.task.responses, 2):
            first, second = ranking.task.responses[one].strip(), ranking.task.responses[other].strip()
            vote = int(np.sign(ranking.ranks[other] - ranking.ranks[one]))
            if first == second:
                continue
            if (second, first) in votes:
                first, second, vote = second, first, -vote
            votes.setdefault((first, second), []).append(vote)
    condense = {"majority": _majority, "bradley_terry": _bradley_terry, "none": _all}[consensus]
    pairs, ties = [], 0
    for prompt, votes in prompts.items():
        for (first, second), margin in condense(votes):
            ties += margin == 0
            if margin:
                chosen, rejected = (first, second) if margin > 0 else (second, first)
                pairs.append(Preferred(prompt, chosen, rejected, abs(margin)))
    return pairs, ties


def thumb_pairs(thumbs: Sequence[Thumb]) -> tuple[list[Preferred], dict[str, int]]:
    """Every thumbs-up of a prompt against every thumbs-down of it; several thumbs on a response count by majority, and
    even ones not at all. Also counts of what gives no pair: `thumbs tied`, `prompts with one thumb`."""
    votes: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for thumb in thumbs:
        votes[thumb.prompt][thumb.response.strip()].append(1 if thumb.up else -1)
    pairs = []
    counts = {"thumbs tied": 0, "prompts with one thumb": 0}
    for prompt, responses in votes.items():
        means = {text: sum(given) / len(given) for text, given in responses.items()}
        up = [text for text, mean in means.items() if mean > 0]
        down = [text for text, mean in means.items() if mean < 0]
        counts["thumbs tied"] += len(means) - len(up) - len(down)
        counts["prompts with one thumb"] += not (up and down)
        pairs += [Preferred(prompt, a, b, (means[a] - means[b]) / 2) for a in up for b in down]
    return pairs, counts


Votes = dict[tuple[str, str], list[int]]
Condensed = list[tuple[tuple[str, str], float]]


def _majority(votes: Votes) -> Condensed:
    return [(pair, sum(given) / len(given)) for pair, given in votes.items()]


def _all(votes: Votes) -> Condensed:
    return [(pair, float(vote)) for pair, given in votes.items() for vote in given]


def _bradley_terry(votes: Votes) -> Condensed:
    """Strengths of a prompt's responses by maximum a posteriori (Bradley and Terry 1952), with a tie as half a win for
    each; over the pairs that were compared."""
    import choix

    texts = {text: i for i, text in enumerate(dict.fromkeys(text for pair in votes for text in pair))}
    wins = []
    for (first, second), given in votes.items():
        a, b = texts[first], texts[second]
        for vote in given:  # each counts twice, for a tie is one win each way
            wins += [(a, b)] * (1 + vote) + [(b, a)] * (1 - vote)
    # its penalty is alpha times the sum of squares, so that over votes counted twice PRIOR is the prior's precision
    strengths = choix.opt_pairwise(len(texts), wins, alpha=PRIOR, tol=1e-8)
    differences = {pair: float(strengths[texts[pair[0]]] - strengths[texts[pair[1]]]) for pair in votes}
    return [(pair, d if abs(d) > EVEN else 0.0) for pair, d in differences.items()]


def _criterion(settings: RankingsConfig, named: Sequence[str | None]) -> str | None:
    """The recipe's criterion, or else the one in the files. Raises DataError if they name several."""
    several = sorted({name for name in named if name is not None})
    if settings.criterion is None and len(several) > 1:
        raise DataError(
            f"the rankings and thumbs judge several criteria ({', '.join(several)}), but a reward model learns "
            "one: set data.preferences.rankings.criterion to the one that you want"
        )
    return settings.criterion or (several[0] if several else None)
