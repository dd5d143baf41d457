"""Sanity checks on a reward, before PPO spends time on it.

Each check gives one figure against one threshold of the recipe (`reward.checks`). A check that doesn't apply - accuracy
without pairs, probes where none are given - is left out, never 0; one whose threshold is null is reported ungated.

What is measured:
  finite_scores    number of scores that are NaN or infinite, on any text here
  pairs            number of held-out pairs
  accuracy         held-out pairs with chosen above rejected, ties counting half: the lower end of the share's 95%
                   interval, pairs of one prompt counting together
  gain_over_length, gain_over_ngrams
                   the accuracy less that of two rules on the same pairs, by the lower end of its paired interval: the
                   longer answer wins; a linear model of the answer's n-grams, see `rlhf_lib.rewards.ngrams`
  transfer         the accuracy's lower end on pairs from elsewhere, data.preferences.transfer
  prompt_sensitivity
                   chosen answers that score higher with their own prompt than with another's: the lower end of the
                   share's 95% interval. At 0.5 the reward reads answers alone, and PPO learns one answer to everything
  probes           recipe-given sentences in the known order, a tie counting as out of order
  calibration      by how much fewer pairs are in order than sigmoid(score difference) claims, beyond chance, see
                   `overconfidence`; beside it the expected calibration error (Naeini 2015; Guo 2017, arXiv:1706.04599)
  score_spread     standard deviation of the scores
  disagreement     of an ensemble: standard deviation over its members' scores, mean over the pairs' answers; not gated
  length_bias      |rank correlation| of score and length, see `length_bias`; of a handful it is noise, and not gated
  degenerate       how often empty, repeated-word, word-shuffled or over-long responses beat a real one, ties counting
                   half; the worst of these. Over-long ones are few: their rate counts from its interval's lower end,
                   and without pairs is only reported
  stock_phrase     how often one phrase alone, the best-paid of those that answers share, beats the chosen answer
  timeouts         of a function that is isolated: answers that it couldn't score in its time and memory; not gated
  batch_agreement  largest difference between a text's score alone and among others
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf_lib.conversation import Conversation
from rlhf_lib.recipe import ChecksConfig
from rlhf_lib.rewards import Reward, timeouts
from rlhf_lib.rewards.calling import Columns
from rlhf_lib.rewards.check_baselines import check_transfer
from rlhf_lib.rewards.check_measures import Scores, length_bias, pairwise_outcomes
from rlhf_lib.rewards.check_pairs import check_pairs
from rlhf_lib.rewards.check_result import Check, CheckReport, gates_off
from rlhf_lib.rewards.check_scorer import Pair, Scorer, Text, finite
from rlhf_lib.rewards.check_texts import over_long, repeated_word, shuffled_words
from rlhf_lib.rewards.columns import taken
from rlhf_lib.rewards.ensemble import Ensemble, agreement
from rlhf_lib.rewards.ngrams import fit_ngrams
from rlhf_lib.statistics import counted, wilson

DEGENERATE_TEXTS = 200  # responses that are made degenerate: the rate is good to 0.035 (one standard deviation)
OVER_LONG_TEXTS = 32  # these cost the model's full width
SINGLE_TEXTS = 32
GATED_KINDS = ("empty", "repeated", "shuffled")  # over-long ones only against responses known to be good


def run_checks(
    reward: Reward,
    checks: ChecksConfig,
    pairs: Sequence[Pair] | None,
    texts: Sequence[Text] | None,
    *,
    calibrated: bool,
    sampled: bool = False,
    training: Sequence[Pair] | None = None,
    transfer: Sequence[Pair] | None = None,
    columns: Columns | None = None,
    seed: int = 0,
) -> CheckReport:
    """Check a reward on held-out `pairs` (prompt, chosen, rejected), or without pairs on `texts` (query, response),
    whose prompts have the other `columns`.

    `calibrated`: score differences are meant as log-odds (a trained preference model), so calibration is gated too.
    `sampled`: the texts are the starting policy's responses, good or bad. Then nothing says that they should beat
    degenerate ones or that length should not pay, and these two checks are not gated.
    `training`: the training pairs, from which the n-gram baseline learns. `transfer`: a second, shifted set of pairs.
    Raises ModelError where the reward doesn't return one score a text; a failed check is in the report, see
    `CheckReport.raise_if_failed`.
    """
    rng = np.random.default_rng(seed)
    report, before = CheckReport(gates_off=gates_off(checks)), timeouts(reward)
    order = rng.permutation(len(texts))[: checks.pairs] if texts and not pairs else np.arange(0)
    scorer = Scorer(reward, taken(columns or {}, order.tolist()))
    if sampled:
        checks = checks.model_copy(update={"max_length_correlation": None, "max_degenerate_win_rate": None})
    if pairs:
        at_hand = len(pairs)
        pairs = [pairs[i] for i in rng.permutation(at_hand)[: checks.pairs]]
        report.add("pairs", len(pairs), checks.min_pairs, "at least", f"of {at_hand:,} at hand")
        texts = [(prompt, chosen) for prompt, chosen, _ in pairs]
        ngrams = fit_ngrams(training) if training else None
        check_pairs(report, scorer, checks, pairs, calibrated=calibrated, ngrams=ngrams, seed=seed)
        if isinstance(reward, Ensemble):
            _check_members(report, reward, pairs)
        if transfer:
            transfer = [transfer[i] for i in np.random.default_rng([seed, 2]).permutation(len(transfer))]
            check_transfer(report, scorer, checks, transfer[: checks.pairs], ngrams)
    elif texts:
        texts = [texts[i] for i in order]
        _check_texts(report, scorer, checks, texts)
    _check_probes(report, scorer, checks, chat=any(isinstance(query, Conversation) for query, _ in texts or []))
    _check_spread(report, checks, f", on {counted(len(texts or []), 'response')} of the starting policy" * sampled)
    if texts:
        real_N = report.scores["chosen" if pairs else "response"]
        _check_degenerate(report, scorer, checks, texts, real_N, bool(pairs), rng)
        _check_batching(report, scorer, checks, texts)
    bad = sum(scorer.nonfinite.values())
    where = ", ".join(f"{count} on {kind}" for kind, count in scorer.nonfinite.items()) or "all finite"
    report.checks.insert(0, Check.judge("finite_scores", bad, 0, "at most", f"of {scorer.total:,} scores: {where}"))
    if before is not None:
        over = (timeouts(reward) or 0) - before
        report.metrics["timeouts"] = over
        report.add("timeouts", over, None, "at most", f"of {scorer.total:,}; they get reward.isolate.timeout_score")
    report.metrics |= {"nonfinite_scores": bad, "checks_failed": len(report.failed)}
    return report


def _check_members(report: CheckReport, ensemble: Ensemble, pairs: Sequence[Pair]) -> None:
    prompts, chosen, rejected = (list(column) for column in zip(*pairs, strict=True))
    found = agreement(ensemble.scores(prompts, chosen), ensemble.scores(prompts, rejected))
    report.metrics |= {f"member_{k}/accuracy": share for k, share in enumerate(found.accuracies)}
    report.metrics["disagreement"] = found.disagreement
    alone = ", ".join(f"{share:.3f}" for share in found.accuracies)
    report.add("disagreement", found.disagreement, None, "at most", f"accuracy of each member alone: {alone}")


def _check_texts(report: CheckReport, scorer: Scorer, checks: ChecksConfig, texts: Sequence[Text]) -> None:
    scores_N, lengths_N = (
        scorer("response", texts, range(len(texts))),
        np.array([len(response) for _, response in texts], dtype=np.float64),
    )
    report.scores, report.lengths = {"response": scores_N}, {"response": lengths_N}
    order = np.argsort(scores_N)
    report.examples = [
        {"query": texts[i][0], "response": texts[i][1], "score": float(scores_N[i])}
        for i in [*order[-5:][::-1], *order[:5]]
    ]
    keep = finite(scores_N)
    count = int(keep.sum())
    report.add_length(
        length_bias(scores_N[keep], lengths_N[keep]), checks.max_length_correlation, count, counted(count, "text")
    )


def _check_probes(report: CheckReport, scorer: Scorer, checks: ChecksConfig, *, chat: bool) -> None:
    if not checks.probes:
        return
    asked = [Conversation.of(probe.query) if chat and probe.query else probe.query for probe in checks.probes]
    better_N = scorer("probes", list(zip(asked, (probe.better for probe in checks.probes), strict=True)))
    worse_N = scorer("probes", list(zip(asked, (probe.worse for probe in checks.probes), strict=True)))
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
    scorer: Scorer,
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
        scores_N = scorer(kind, made, [int(i) for i in some])
        # a one-word answer is its own shuffle and its own repetition: nothing to compare
        changed = np.array(
            [new.split() != texts[i][1].split() for i, (_, new) in zip(some, made, strict=True)], dtype=bool
        )
        keep = np.isfinite(scores_N) & changed
        if keep.any():
            rates[kind] = float(pairwise_outcomes(scores_N[keep], real_N[some][keep]).mean())
    report.metrics |= {f"degenerate_{kind}": rate for kind, rate in rates.items()}
    # over-long ones, being few, by the lower end of their rate's interval
    gated = {
        kind: wilson(rate, OVER_LONG_TEXTS)[0] if kind == "over_long" else rate
        for kind, rate in rates.items()
        if kind in GATED_KINDS or known_good
    }
    if gated:
        real = "the chosen response" if known_good else "a response of the better-scored half"
        detail = f"of those that should lose to {real}: " + ", ".join(
            f"{kind} {rate:.2f}" for kind, rate in rates.items()
        )
        detail += f"; of {counted(len(good), 'response')}"
        report.add("degenerate", max(gated.values()), checks.max_degenerate_win_rate, "at most", detail)


def _check_batching(report: CheckReport, scorer: Scorer, checks: ChecksConfig, texts: Sequence[Text]) -> None:
    """Alone, among others, and among others in the opposite order, from the shortest to the longest text."""
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i][0]) + len(texts[i][1]))
    rows = [by_length[i] for i in np.unique(np.linspace(0, len(texts) - 1, SINGLE_TEXTS).astype(int))]
    some = [texts[i] for i in rows]
    batch_N, backwards_N = scorer("batches", some, rows), scorer("batches", some[::-1], rows[::-1])[::-1]
    alone_N = np.concatenate([scorer("single texts", [text], [row]) for text, row in zip(some, rows, strict=True)])
    keep = finite(batch_N, backwards_N, alone_N)
    if keep.any():
        difference = np.abs(np.stack([batch_N, backwards_N]) - alone_N)[:, keep].max()
        report.metrics["batch_difference"] = float(difference)
        detail = counted(int(keep.sum()), "text")
        report.add("batch_agreement", difference, checks.max_batch_difference, "at most", detail)
