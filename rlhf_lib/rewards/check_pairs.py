"""The checks on held-out pairs: accuracy, calibration, length, and whether the score depends on the prompt at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from rlhf_lib.recipe import ChecksConfig
from rlhf_lib.rewards.check_baselines import check_baselines
from rlhf_lib.rewards.check_measures import (
    Scores,
    length_bias,
    overconfidence,
    pairwise_outcomes,
    reliability,
)
from rlhf_lib.rewards.check_result import CheckReport
from rlhf_lib.rewards.check_scorer import Pair, Scorer, finite, prompts_matter
from rlhf_lib.rewards.check_texts import other_prompts, well_paid_phrases
from rlhf_lib.rewards.ngrams import NgramModel
from rlhf_lib.statistics import LEAST_FOR_INTERVAL, clustered_share_interval, counted, no_interval

PHRASES = 12  # that are tried
PHRASE_TRIALS = 8  # prompts on which they are
PHRASE_TEXTS = 200  # most prompts for the best of them


def check_pairs(
    report: CheckReport,
    scorer: Scorer,
    checks: ChecksConfig,
    pairs: Sequence[Pair],
    *,
    calibrated: bool,
    ngrams: NgramModel | None,
    seed: int,
) -> None:
    """Add to the report what the pairs tell. `calibrated`: as in `run_checks`; `ngrams`: the baseline, if any."""
    chosen_N = scorer("chosen", [(prompt, chosen) for prompt, chosen, _ in pairs])
    rejected_N = scorer("rejected", [(prompt, rejected) for prompt, _, rejected in pairs])
    lengths_N2 = np.array([[len(chosen), len(rejected)] for _, chosen, rejected in pairs], dtype=np.float64)
    report.scores = {"chosen": chosen_N, "rejected": rejected_N}
    report.lengths = {"chosen": lengths_N2[:, 0], "rejected": lengths_N2[:, 1]}
    report.examples = _most_wrong(pairs, chosen_N - rejected_N, chosen_N, rejected_N)
    keep = finite(chosen_N, rejected_N)
    if not keep.any():
        return
    finite_pairs = [pair for pair, kept in zip(pairs, keep, strict=True) if kept]
    prompts = [prompt for prompt, _, _ in finite_pairs]
    chosen_N, rejected_N, (long_N, short_N) = chosen_N[keep], rejected_N[keep], lengths_N2[keep].T

    right_N = pairwise_outcomes(chosen_N, rejected_N)
    accuracy, report.pairs = float(right_N.mean()), int(keep.sum())
    report.metrics |= {"accuracy": accuracy, "pairs": report.pairs}
    low, high = clustered_share_interval(right_N.tolist(), prompts)
    detail = f"accuracy {accuracy:.3f}, "
    if report.pairs < LEAST_FOR_INTERVAL:
        detail += no_interval(report.pairs, "pair")
    else:
        report.metrics |= {"accuracy_low": low, "accuracy_high": high}
        detail += f"95% interval {low:.3f} to {high:.3f}, {counted(report.pairs, 'pair')}"
    report.add("accuracy", low, checks.min_accuracy, "at least", detail)
    check_baselines(report, checks, finite_pairs, right_N, ngrams)
    _check_prompt(report, scorer, checks, pairs, report.scores["chosen"], np.random.default_rng([seed, 1]))

    report.reliability, short = reliability(chosen_N, rejected_N), overconfidence(chosen_N, rejected_N)
    error = report.reliability.error
    report.metrics |= {"calibration_error": error, "overconfidence": short}
    threshold = checks.max_calibration_error if calibrated else None
    mean = expit(np.abs(chosen_N - rejected_N)).mean()
    detail = f"{accuracy:.3f} are in order where the scores claim {mean:.3f}; expected calibration error {error:.3f}"
    report.add("calibration", short, threshold, "at most", detail)

    longer = pairwise_outcomes(long_N, short_N).mean()
    report.metrics |= {"chosen_longer": float(longer)}
    report.add_length(
        length_bias(chosen_N, long_N, rejected_N, short_N),
        checks.max_length_correlation,
        report.pairs,
        f"chosen is longer in {longer:.0%} of {counted(report.pairs, 'pair')}",
    )
    _check_phrase(report, scorer, checks, pairs)


def _check_prompt(
    report: CheckReport,
    scorer: Scorer,
    checks: ChecksConfig,
    pairs: Sequence[Pair],
    own_N: Scores,
    rng: np.random.Generator,
) -> None:
    """Whether chosen answers score higher with their own prompt than with another's; left out where the prompts are
    too few to tell."""
    prompts = [prompt for prompt, _, _ in pairs]
    if len(set(prompts)) < LEAST_FOR_INTERVAL:
        return
    others = other_prompts(prompts, rng)
    other_N = scorer("shuffled prompts", [(other, pair[1]) for other, pair in zip(others, pairs, strict=True)])
    keep = finite(own_N, other_N)
    if not keep.any():
        return
    higher_N = pairwise_outcomes(own_N[keep], other_N[keep])
    kept = [prompt for prompt, good in zip(prompts, keep, strict=True) if good]
    share, gain = float(higher_N.mean()), float((own_N - other_N)[keep].mean())
    low, high = clustered_share_interval(higher_N.tolist(), kept)
    report.metrics |= {
        "prompt_sensitivity": share,
        "prompt_sensitivity_low": low,
        "prompt_sensitivity_high": high,
        "prompt_gain": gain,
    }
    report.add(
        "prompt_sensitivity",
        low,
        checks.min_prompt_sensitivity if prompts_matter(checks, prompts) else None,
        "above",
        f"{share:.3f} of {counted(len(kept), 'chosen answer')}, 95% interval {low:.3f} to {high:.3f}; the own prompt "
        f"adds {gain:+.3g} to the score on average",
    )


def _check_phrase(report: CheckReport, scorer: Scorer, checks: ChecksConfig, pairs: Sequence[Pair]) -> None:
    """Try the best-paid phrases on a few prompts, and the best of these on the others."""
    chosen_N, rejected_N = report.scores["chosen"], report.scores["rejected"]
    keep = finite(chosen_N, rejected_N)
    pairs = [pair for pair, kept in zip(pairs, keep, strict=True) if kept]
    chosen_N, rejected_N = chosen_N[keep], rejected_N[keep]
    answers = [*(chosen for _, chosen, _ in pairs), *(rejected for _, _, rejected in pairs)]
    phrases = well_paid_phrases(answers, np.concatenate([chosen_N, rejected_N]), PHRASES)
    first = [prompt for prompt, _, _ in pairs[:PHRASE_TRIALS]]
    others = pairs[PHRASE_TRIALS : PHRASE_TRIALS + PHRASE_TEXTS]
    if not phrases or len(others) < LEAST_FOR_INTERVAL:
        return
    tried_NP = np.stack([scorer("phrases", [(prompt, f" {phrase}") for prompt in first]) for phrase in phrases], axis=1)
    if not np.isfinite(tried_NP).all():
        return
    best = phrases[int(tried_NP.mean(axis=0).argmax())]
    scores_N = scorer("phrases", [(prompt, f" {best}") for prompt, _, _ in others])
    rate = float(pairwise_outcomes(scores_N, chosen_N[PHRASE_TRIALS:][: len(others)]).mean())
    report.metrics["phrase_win_rate"] = rate
    threshold = checks.max_phrase_win_rate if prompts_matter(checks, [prompt for prompt, _, _ in pairs]) else None
    report.add("stock_phrase", rate, threshold, "at most", f"{best!r}, {counted(len(others), 'prompt')}")


def _most_wrong(pairs: Sequence[Pair], margin_N: Scores, chosen_N: Scores, rejected_N: Scores) -> list[dict[str, Any]]:
    return [
        dict(zip(("prompt", "chosen", "rejected"), pairs[i], strict=True))
        | {"score_chosen": float(chosen_N[i]), "score_rejected": float(rejected_N[i])}
        for i in np.argsort(margin_N)[:10]
    ]
