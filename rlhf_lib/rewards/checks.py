"""Sanity checks on a reward, before PPO spends time on it.

Each check gives one figure against one threshold of the recipe (`reward.checks`). A check that doesn't apply - accuracy
without pairs, probes where none are given - is left out, never 0; one whose threshold is null is reported ungated.

What is measured:
  finite_scores    number of scores that are NaN or infinite, on any text here
  pairs            number of held-out pairs
  accuracy         held-out pairs with chosen above rejected, ties counting half
  probes           recipe-given sentences in the known order, a tie counting as out of order
  calibration      by how much fewer pairs are in order than sigmoid(score difference) claims, beyond chance, see
                   `overconfidence`; beside it the expected calibration error (Naeini 2015; Guo 2017, arXiv:1706.04599)
  score_spread     standard deviation of the scores
  length_bias      |rank correlation| of score and length, see `length_bias`; of a handful it is noise, and not gated
  degenerate       how often empty, repeated-word or word-shuffled responses beat a real one, ties counting half; the
                   worst of the three. Over-long ones must be finite; their rate is reported
  batch_agreement  largest difference between a text's score alone and among others
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from rlhf_lib.errors import GateFailed, ModelError
from rlhf_lib.recipe import ChecksConfig
from rlhf_lib.rewards import Reward
from rlhf_lib.rewards.check_measures import (
    Reliability,
    Scores,
    length_bias,
    overconfidence,
    pairwise_outcomes,
    reliability,
)
from rlhf_lib.rewards.check_texts import over_long, repeated_word, shuffled_words
from rlhf_lib.statistics import LEAST_FOR_INTERVAL, counted, no_interval, share_interval

Pair = tuple[str, str, str]  # prompt, chosen, rejected
Text = tuple[str, str]  # query, response

DEGENERATE_TEXTS = 200  # responses that are made degenerate: the rate is good to 0.035 (one standard deviation)
OVER_LONG_TEXTS = 8  # these cost the model's full width
SINGLE_TEXTS = 32
GATED_KINDS = ("empty", "repeated", "shuffled")
# check -> what its figure is, in words, and the key under reward.checks that holds its threshold (none: it has to be 0)
FIGURES = {
    "finite_scores": ("the number of NaN or infinite scores", None),
    "pairs": ("the number of held-out pairs", "min_pairs"),
    "accuracy": ("the share of held-out pairs with chosen above rejected", "min_accuracy"),
    "calibration": (
        "how far the share of pairs in order falls short of what the scores claim",
        "max_calibration_error",
    ),
    "length_bias": ("the absolute rank correlation of score and length", "max_length_correlation"),
    "probes": ("the share of probes in their order", "min_probe_accuracy"),
    "score_spread": ("the standard deviation of the scores", "min_score_std"),
    "degenerate": ("the share of degenerate responses that beat a real one", "max_degenerate_win_rate"),
    "batch_agreement": ("the largest difference between a text's score alone and in a batch", "max_batch_difference"),
}


@dataclass(frozen=True)
class Check:
    """One value against its threshold; `bound` says on which side of it the value must be."""

    name: str
    figure: float
    threshold: float | None
    bound: str  # at least | at most
    passed: bool
    detail: str

    @classmethod
    def judge(cls, name: str, figure: float, threshold: float | None, bound: str, detail: str = "") -> Check:
        figure = float(figure)
        passed = threshold is None or (figure >= threshold if bound == "at least" else figure <= threshold)
        return cls(name, figure, threshold, bound, passed, detail)

    def __str__(self) -> str:
        """`accuracy: the share of held-out pairs with chosen above rejected is 0.52, must be at least 0.6 (...)`"""
        bound = "" if self.key is None else f"{self.bound} "
        must = "is not gated" if self.threshold is None else f"must be {bound}{self.threshold:g}"
        return f"{self.name}: {self.what} is {self.figure:.4g} and {must} ({self.detail})"

    @property
    def what(self) -> str:
        """What the figure is."""
        return FIGURES[self.name][0]

    @property
    def key(self) -> str | None:
        """The recipe's key of the threshold."""
        key = FIGURES[self.name][1]
        return key and f"reward.checks.{key}"


@dataclass
class CheckReport:
    """The checks that apply, all metrics, flat, and the scores behind the plots; `pairs` that the accuracy is of."""

    checks: list[Check] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)  # chosen and rejected, or response
    lengths: dict[str, Scores] = field(default_factory=dict)  # characters, as scores
    reliability: Reliability | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)  # texts with their scores, the most telling first
    pairs: int = 0

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    @property
    def accuracy(self) -> float | None:
        return self.metrics.get("accuracy")

    def as_dicts(self) -> list[dict[str, Any]]:
        return [asdict(check) | {"what": check.what} for check in self.checks]

    def raise_if_failed(self) -> None:
        """Raise GateFailed naming every failed check, its value, its threshold and what to do."""
        if not self.failed:
            return
        names = {check.name for check in self.failed}
        fix = "Give data.preferences more held-out pairs" if names == {"pairs"} else "Improve the reward or its data"
        if keys := [check.key for check in self.failed if check.key]:
            fix += f", or change the recipe's {' and '.join(keys)}, which null switches off"
        if "finite_scores" in names:
            fix = f"A reward has to give a finite number for any text. {fix}" if keys else "Make it finite for any text"
        raise GateFailed(f"the reward failed its checks: {'; '.join(map(str, self.failed))}. {fix}")

    def add(self, name: str, figure: float, threshold: float | None, bound: str, detail: str) -> None:
        self.checks.append(Check.judge(name, figure, threshold, bound, detail))


class _Scorer:
    """The reward, with a count of its scores and a note of the non-finite ones by kind of text."""

    def __init__(self, reward: Reward):
        self.reward = reward
        self.total = 0
        self.nonfinite: dict[str, int] = {}

    def __call__(self, kind: str, texts: Sequence[Text]) -> Scores:
        queries, responses = [query for query, _ in texts], [response for _, response in texts]
        scores_N = np.asarray(self.reward(queries, responses), dtype=np.float64)
        if scores_N.shape != (len(texts),):
            raise ModelError(
                f"the reward gave scores of shape {scores_N.shape} for {len(texts)} texts: expected one each"
            )
        self.total += len(texts)
        if bad := int((~np.isfinite(scores_N)).sum()):
            self.nonfinite[kind] = self.nonfinite.get(kind, 0) + bad
        return scores_N


def _finite(*scores: Scores) -> NDArray[np.bool_]:
    return np.logical_and.reduce([np.isfinite(row) for row in scores])


def run_checks(
    reward: Reward,
    checks: ChecksConfig,
    pairs: Sequence[Pair] | None,
    texts: Sequence[Text] | None,
    *,
    calibrated: bool,
    sampled: bool = False,
    seed: int = 0,
) -> CheckReport:
    """Check a reward on held-out `pairs` (prompt, chosen, rejected), or without pairs on `texts` (query, response).

    `calibrated`: score differences are meant as log-odds (a trained preference model), so calibration is gated too.
    `sampled`: the texts are the starting policy's responses, good or bad. Then nothing says that they should beat
    degenerate ones or that length should not pay, and these two checks are not gated.
    Raises ModelError where the reward doesn't return one score a text; a failed check is in the report, see
    `CheckReport.raise_if_failed`.
    """
    rng = np.random.default_rng(seed)
    report, scorer = CheckReport(), _Scorer(reward)
    if sampled:
        checks = checks.model_copy(update={"max_length_correlation": None, "max_degenerate_win_rate": None})
    if pairs:
        at_hand = len(pairs)
        pairs = [pairs[i] for i in rng.permutation(at_hand)[: checks.pairs]]
        report.add("pairs", len(pairs), checks.min_pairs, "at least", f"of {at_hand:,} at hand")
        texts = [(prompt, chosen) for prompt, chosen, _ in pairs]
        _check_pairs(report, scorer, checks, pairs, calibrated)
    elif texts:
        texts = [texts[i] for i in rng.permutation(len(texts))[: checks.pairs]]
        _check_texts(report, scorer, checks, texts)
    _check_probes(report, scorer, checks)
    _check_spread(report, checks, f", on {counted(len(texts or []), 'response')} of the starting policy" * sampled)
    if texts:
        real_N = report.scores["chosen" if pairs else "response"]
        _check_degenerate(report, scorer, checks, texts, real_N, bool(pairs), rng)
        _check_batching(report, scorer, checks, texts)
    bad = sum(scorer.nonfinite.values())
    where = ", ".join(f"{count} on {kind}" for kind, count in scorer.nonfinite.items()) or "all finite"
    report.checks.insert(0, Check.judge("finite_scores", bad, 0, "at most", f"of {scorer.total:,} scores: {where}"))
    report.metrics |= {"nonfinite_scores": bad, "checks_failed": len(report.failed)}
    return report


def _check_pairs(
    report: CheckReport, scorer: _Scorer, checks: ChecksConfig, pairs: Sequence[Pair], calibrated: bool
) -> None:
    chosen_N = scorer("chosen", [(prompt, chosen) for prompt, chosen, _ in pairs])
    rejected_N = scorer("rejected", [(prompt, rejected) for prompt, _, rejected in pairs])
    lengths_N2 = np.array([[len(chosen), len(rejected)] for _, chosen, rejected in pairs], dtype=np.float64)
    report.scores = {"chosen": chosen_N, "rejected": rejected_N}
    report.lengths = {"chosen": lengths_N2[:, 0], "rejected": lengths_N2[:, 1]}
    report.examples = _most_wrong(pairs, chosen_N - rejected_N, chosen_N, rejected_N)
    keep = _finite(chosen_N, rejected_N)
    if not keep.any():
        return
    chosen_N, rejected_N, (long_N, short_N) = chosen_N[keep], rejected_N[keep], lengths_N2[keep].T

    accuracy, report.pairs = float(pairwise_outcomes(chosen_N, rejected_N).mean()), int(keep.sum())
    report.metrics |= {"accuracy": accuracy, "pairs": report.pairs}
    detail = no_interval(report.pairs, "pair")
    if interval := share_interval(accuracy, report.pairs):
        report.metrics |= dict(zip(("accuracy_low", "accuracy_high"), interval, strict=True))
        detail = f"95% interval {interval[0]:.3f} to {interval[1]:.3f}, {counted(report.pairs, 'pair')}"
    report.add("accuracy", accuracy, checks.min_accuracy, "at least", detail)

    report.reliability, short = reliability(chosen_N, rejected_N), overconfidence(chosen_N, rejected_N)
    error = report.reliability.error
    report.metrics |= {"calibration_error": error, "overconfidence": short}
    threshold = checks.max_calibration_error if calibrated else None
    mean = expit(np.abs(chosen_N - rejected_N)).mean()
    detail = f"{accuracy:.3f} are in order where the scores claim {mean:.3f}; expected calibration error {error:.3f}"
    report.add("calibration", short, threshold, "at most", detail)

    longer = pairwise_outcomes(long_N, short_N).mean()
    report.metrics |= {"chosen_longer": float(longer)}
    _add_length(
        report,
        checks,
        length_bias(chosen_N, long_N, rejected_N, short_N),
        report.pairs,
        f"chosen is longer in {longer:.0%} of {counted(report.pairs, 'pair')}",
    )


def _check_texts(report: CheckReport, scorer: _Scorer, checks: ChecksConfig, texts: Sequence[Text]) -> None:
    scores_N, lengths_N = (
        scorer("response", texts),
        np.array([len(response) for _, response in texts], dtype=np.float64),
    )
    report.scores, report.lengths = {"response": scores_N}, {"response": lengths_N}
    order = np.argsort(scores_N)
    report.examples = [
        {"query": texts[i][0], "response": texts[i][1], "score": float(scores_N[i])}
        for i in [*order[-5:][::-1], *order[:5]]
    ]
    keep = _finite(scores_N)
    count = int(keep.sum())
    _add_length(report, checks, length_bias(scores_N[keep], lengths_N[keep]), count, counted(count, "text"))


def _add_length(report: CheckReport, checks: ChecksConfig, rho: float | None, count: int, detail: str) -> None:
    if rho is not None:
        report.metrics["length_correlation"] = rho
        threshold = checks.max_length_correlation
        if count < LEAST_FOR_INTERVAL:
            threshold, detail = None, f"{detail}, too few to judge by"
        report.add("length_bias", abs(rho), threshold, "at most", f"rank correlation {rho:+.2f}, {detail}")


def _check_probes(report: CheckReport, scorer: _Scorer, checks: ChecksConfig) -> None:
    if not checks.probes:
        return
    better_N = scorer("probes", [(probe.query, probe.better) for probe in checks.probes])
    worse_N = scorer("probes", [(probe.query, probe.worse) for probe in checks.probes])
    right_N = better_N > worse_N
    wrong = [
        f"{p.better[:60]!r} not above {p.worse[:60]!r}"
        for p, right in zip(checks.probes, right_N, strict=True)
        if not right
    ]
    report.metrics["probe_accuracy"] = float(right_N.mean())
    detail = f"{right_N.sum()} of {len(right_N)} in order" + (f"; {'; '.join(wrong[:3])}" if wrong else "")
    report.add("probes", right_N.mean(), checks.min_probe_accuracy, "at least", detail)


def _check_spread(report: CheckReport, checks: ChecksConfig, of: str) -> None:
    scores_N = np.concatenate([*report.scores.values(), []])
    scores_N = scores_N[np.isfinite(scores_N)]
    if scores_N.size:
        report.metrics |= {f"mean_{k}": float(v.mean()) for k, v in report.scores.items() if np.isfinite(v).all()}
        report.metrics["score_std"] = float(scores_N.std())
        low, high = scores_N.min(), scores_N.max()
        report.add(
            "score_spread", scores_N.std(), checks.min_score_std, "at least", f"scores from {low:.3g} to {high:.3g}{of}"
        )


def _check_degenerate(
    report: CheckReport,
    scorer: _Scorer,
    checks: ChecksConfig,
    texts: Sequence[Text],
    real_N: Scores,
    known_good: bool,
    rng: np.random.Generator,
) -> None:
    """Compare with the chosen responses; without pairs, with the better-scoring half, since the other half is meant to
    score low."""
    good = np.flatnonzero(np.isfinite(real_N))
    if not good.size:
        return
    if not known_good:
        good = good[real_N[good] >= np.median(real_N[good])]
    good = good[:DEGENERATE_TEXTS]
    makers: Mapping[str, Callable[[str], str]] = {
        "empty": lambda _: "",
        "repeated": lambda response: repeated_word(response, rng),
        "shuffled": lambda response: shuffled_words(response, rng),
        "over_long": over_long,
    }
    rates: dict[str, float] = {}
    for kind, make in makers.items():
        some = good[:OVER_LONG_TEXTS] if kind == "over_long" else good
        if kind == "empty":  # an empty response to an empty query is no text at all: no reward has to score it
            some = np.array([i for i in some if texts[i][0].strip()], dtype=int)
            if not some.size:
                continue
        made = [(texts[i][0], make(texts[i][1])) for i in some]
        scores_N = scorer(kind, made)
        # a one-word answer is its own shuffle and its own repetition: nothing to compare
        changed = np.array(
            [new.split() != texts[i][1].split() for i, (_, new) in zip(some, made, strict=True)], dtype=bool
        )
        keep = np.isfinite(scores_N) & changed
        if keep.any():
            rates[kind] = float(pairwise_outcomes(scores_N[keep], real_N[some][keep]).mean())
    report.metrics |= {f"degenerate_{kind}": rate for kind, rate in rates.items()}
    gated = {kind: rate for kind, rate in rates.items() if kind in GATED_KINDS}
    if gated:
        real = "the chosen response" if known_good else "a response of the better-scored half"
        detail = f"of those that should lose to {real}: " + ", ".join(
            f"{kind} {rate:.2f}" for kind, rate in rates.items()
        )
        detail += f"; of {counted(len(good), 'response')}"
        report.add("degenerate", max(gated.values()), checks.max_degenerate_win_rate, "at most", detail)


def _check_batching(report: CheckReport, scorer: _Scorer, checks: ChecksConfig, texts: Sequence[Text]) -> None:
    """Alone, among others, and among others in the opposite order, from the shortest to the longest text."""
    by_length = sorted(texts, key=lambda text: len(text[0]) + len(text[1]))
    some = [by_length[i] for i in np.unique(np.linspace(0, len(texts) - 1, SINGLE_TEXTS).astype(int))]
    batch_N, backwards_N = scorer("batches", some), scorer("batches", some[::-1])[::-1]
    alone_N = np.concatenate([scorer("single texts", [text]) for text in some])
    keep = _finite(batch_N, backwards_N, alone_N)
    if keep.any():
        difference = np.abs(np.stack([batch_N, backwards_N]) - alone_N)[:, keep].max()
        report.metrics["batch_difference"] = float(difference)
        detail = counted(int(keep.sum()), "text")
        report.add("batch_agreement", difference, checks.max_batch_difference, "at most", detail)


def _most_wrong(pairs: Sequence[Pair], margin_N: Scores, chosen_N: Scores, rejected_N: Scores) -> list[dict[str, Any]]:
    return [
        dict(zip(("prompt", "chosen", "rejected"), pairs[i], strict=True))
        | {"score_chosen": float(chosen_N[i]), "score_rejected": float(rejected_N[i])}
        for i in np.argsort(margin_N)[:10]
    ]
