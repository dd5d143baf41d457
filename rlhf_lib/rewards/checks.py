"""Sanity checks on a reward, before any PPO is paid for.

Each check gives one figure against one threshold of the recipe (`reward.checks`). A check that doesn't apply - accuracy
without pairs, probes where none are given - is left out, never 0; one whose threshold is null is reported ungated.

What is measured:
  finite_scores    number of scores that are NaN or infinite, on any text here
  accuracy         held-out pairs with chosen above rejected, ties counting half
  probes           recipe-given sentences in the known order, a tie counting as out of order
  calibration      expected calibration error of sigmoid(score difference) (Naeini 2015; Guo 2017, arXiv:1706.04599)
  score_spread     standard deviation of the scores
  length_bias      |rank correlation| of score and length, see `length_bias`
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
from rlhf_lib.rewards.check_texts import over_long, repeated_word, shuffled_words
from rlhf_lib.statistics import bootstrap_mean, rank_correlation

Scores = NDArray[np.float64]
Pair = tuple[str, str, str]  # prompt, chosen, rejected
Text = tuple[str, str]  # query, response

DEGENERATE_TEXTS = 200  # responses that are made degenerate: the rate is good to 0.035 (one standard deviation)
OVER_LONG_TEXTS = 8  # these cost the model's full width
SINGLE_TEXTS = 32
BINS = 10
GATED_KINDS = ("empty", "repeated", "shuffled")


# ---------------------------------------------------------------- metrics


def pairwise_outcomes(chosen_N: Scores, rejected_N: Scores) -> Scores:
    """1 where chosen scores higher, 0 where rejected does, 0.5 for a tie: (N,); the mean is the accuracy."""
    return np.heaviside(chosen_N - rejected_N, 0.5)


@dataclass(frozen=True)
class Reliability:
    """Mean predicted and observed preference of each bin that holds any, with its count: each (B,)."""

    predicted_B: Scores
    observed_B: Scores
    count_B: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: |predicted - observed|, bins weighted by their count."""
        return float(np.average(np.abs(self.predicted_B - self.observed_B), weights=self.count_B))


def reliability(chosen_N: Scores, rejected_N: Scores, bins: int = BINS) -> Reliability:
    """Predicted preference sigmoid(difference) against the observed one, in equal-width bins over [0, 1].

    Taken as (chosen, rejected) alone, every pair would be observed as 1 and any confident model look calibrated. So
    each pair enters in both orders, which is what a random order comes to on average, without the luck of the draw.
    """
    predicted_2N = expit(np.concatenate([chosen_N - rejected_N, rejected_N - chosen_N]))
    observed_2N = np.repeat([1.0, 0.0], chosen_N.size)
    bin_2N = np.minimum((predicted_2N * bins).astype(int), bins - 1)
    count_B = np.bincount(bin_2N, minlength=bins)
    some = count_B > 0
    mean = [np.bincount(bin_2N, v, minlength=bins)[some] / count_B[some] for v in (predicted_2N, observed_2N)]
    return Reliability(mean[0], mean[1], count_B[some])


def length_bias(
    scores_N: Scores, lengths_N: Scores, other_scores_N: Scores | None = None, other_lengths_N: Scores | None = None
) -> float | None:
    """Spearman's rho of score and response length; of pairs, of the differences chosen - rejected. None: undefined.

    Between differences in that one order, what the prompt adds to score and length cancels, and a preference of the
    data for longer answers is only a shift of both, which ranks don't see: 0 for a model that scores quality however
    much longer the better answers are, 1 for one that scores length.
    """
    if other_scores_N is not None and other_lengths_N is not None:
        scores_N, lengths_N = scores_N - other_scores_N, lengths_N - other_lengths_N
    return rank_correlation(scores_N.tolist(), lengths_N.tolist())


# ---------------------------------------------------------------- report


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
        must = "not gated" if self.threshold is None else f"must be {self.bound} {self.threshold:g}"
        return f"{self.name} is {self.figure:.4g}, {must} ({self.detail})"


@dataclass
class CheckReport:
    """The checks that apply, all metrics, flat, and the scores behind the plots."""

    checks: list[Check] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)  # chosen and rejected, or response
    lengths: dict[str, Scores] = field(default_factory=dict)  # characters, as scores
    reliability: Reliability | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)  # texts with their scores, the most telling first

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
        return [asdict(check) for check in self.checks]

    def raise_if_failed(self) -> None:
        """Raise GateFailed naming every failed check, its value, its threshold and what to do."""
        if self.failed:
            raise GateFailed(
                "the reward model failed its checks: "
                + "; ".join(map(str, self.failed))
                + ". Mend the reward model or its data; the thresholds are reward.checks in the recipe, null "
                "switches one off"
            )

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
    seed: int = 0,
) -> CheckReport:
    """Check a reward on held-out `pairs` (prompt, chosen, rejected), or without pairs on `texts` (query, response).

    `calibrated`: score differences are meant as log-odds (a trained preference model), so calibration is gated too.
    Raises ModelError where the reward doesn't return one score a text; a failed check is in the report, see
    `CheckReport.raise_if_failed`.
    """
    rng = np.random.default_rng(seed)
    report, scorer = CheckReport(), _Scorer(reward)
    if pairs:
        pairs = [pairs[i] for i in rng.permutation(len(pairs))[: checks.pairs]]
        texts = [(prompt, chosen) for prompt, chosen, _ in pairs]
        _check_pairs(report, scorer, checks, pairs, calibrated, seed)
    elif texts:
        texts = [texts[i] for i in rng.permutation(len(texts))[: checks.pairs]]
        _check_texts(report, scorer, checks, texts)
    _check_probes(report, scorer, checks)
    _check_spread(report, checks)
    if texts:
        real_N = report.scores["chosen" if pairs else "response"]
        _check_degenerate(report, scorer, checks, texts, real_N, bool(pairs), rng)
        _check_batching(report, scorer, checks, texts)
    bad = sum(scorer.nonfinite.values())
    where = ", ".join(f"{count} on {kind}" for kind, count in scorer.nonfinite.items()) or "all finite"
    report.checks.insert(0, Check.judge("finite_scores", bad, 0, "at most", f"of {scorer.total} scores, {where}"))
    report.metrics |= {"nonfinite_scores": bad, "checks_failed": len(report.failed)}
    return report


def _check_pairs(
    report: CheckReport, scorer: _Scorer, checks: ChecksConfig, pairs: Sequence[Pair], calibrated: bool, seed: int
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

    accuracy, low, high = bootstrap_mean(pairwise_outcomes(chosen_N, rejected_N).tolist(), seed=seed)
    report.metrics |= {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
    report.add(
        "accuracy", accuracy, checks.min_accuracy, "at least", f"95% {low:.3f} to {high:.3f}, {keep.sum()} pairs"
    )

    report.reliability = reliability(chosen_N, rejected_N)
    report.metrics["calibration_error"] = report.reliability.error
    threshold = checks.max_calibration_error if calibrated else None
    mean = expit(np.abs(chosen_N - rejected_N)).mean()
    report.add(
        "calibration",
        report.reliability.error,
        threshold,
        "at most",
        f"right {accuracy:.3f} of the time where {mean:.3f} is predicted",
    )

    longer = pairwise_outcomes(long_N, short_N).mean()
    report.metrics |= {"chosen_longer": float(longer)}
    _add_length(
        report,
        checks,
        length_bias(chosen_N, long_N, rejected_N, short_N),
        f"chosen is longer in {longer:.2f} of the pairs",
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
    _add_length(report, checks, length_bias(scores_N[keep], lengths_N[keep]), f"{keep.sum()} texts")


def _add_length(report: CheckReport, checks: ChecksConfig, rho: float | None, detail: str) -> None:
    if rho is not None:
        report.metrics["length_correlation"] = rho
        report.add(
            "length_bias", abs(rho), checks.max_length_correlation, "at most", f"rank correlation {rho:+.2f}, {detail}"
        )


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


def _check_spread(report: CheckReport, checks: ChecksConfig) -> None:
    scores_N = np.concatenate([*report.scores.values(), []])
    scores_N = scores_N[np.isfinite(scores_N)]
    if scores_N.size:
        report.metrics |= {f"mean_{k}": float(v.mean()) for k, v in report.scores.items() if np.isfinite(v).all()}
        report.metrics["score_std"] = float(scores_N.std())
        low, high = scores_N.min(), scores_N.max()
        report.add(
            "score_spread", scores_N.std(), checks.min_score_std, "at least", f"scores from {low:.3g} to {high:.3g}"
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
        detail = f"beats {real}: " + ", ".join(f"{kind} {rate:.2f}" for kind, rate in rates.items())
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
        report.add("batch_agreement", difference, checks.max_batch_difference, "at most", f"{keep.sum()} texts")


def _most_wrong(pairs: Sequence[Pair], margin_N: Scores, chosen_N: Scores, rejected_N: Scores) -> list[dict[str, Any]]:
    return [
        dict(zip(("prompt", "chosen", "rejected"), pairs[i], strict=True))
        | {"score_chosen": float(chosen_N[i]), "score_rejected": float(rejected_N[i])}
        for i in np.argsort(margin_N)[:10]
    ]
