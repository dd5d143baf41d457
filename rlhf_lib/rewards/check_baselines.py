"""A reward against rules that need no understanding, on the same held-out pairs: the longer answer wins, and the answer
whose wording is more like that of chosen ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_lib.recipe import ChecksConfig
from rlhf_lib.rewards.check_measures import Scores, pairwise_outcomes
from rlhf_lib.rewards.check_result import CheckReport
from rlhf_lib.rewards.check_scorer import Pair, Scorer, finite, prompts_matter
from rlhf_lib.rewards.ngrams import NgramModel
from rlhf_lib.statistics import LEAST_FOR_INTERVAL, bootstrap_mean, clustered_share_interval, counted, enough


def check_baselines(
    report: CheckReport, checks: ChecksConfig, pairs: Sequence[Pair], right_N: Scores, ngrams: NgramModel | None
) -> None:
    """Add both comparisons; `right_N`: the reward's outcome for each pair. Without `ngrams` the second is left out."""
    judged = checks.min_accuracy is not None
    longer_N = longer_wins(pairs)
    split = [
        f"{right_N[longer_N == outcome].mean():.3f} where chosen is {name} ({int((longer_N == outcome).sum()):,})"
        for name, outcome in (("longer", 1), ("shorter", 0))
        if (longer_N == outcome).any()
    ]
    report.metrics |= {
        f"accuracy_chosen_{name}": float(right_N[longer_N == outcome].mean())
        for name, outcome in (("longer", 1), ("shorter", 0))
        if (longer_N == outcome).any()
    }
    threshold = checks.min_gain_over_length if judged else None
    _compare(report, "length", threshold, pairs, right_N, longer_N, f"accuracy {', '.join(split)}")
    if ngrams is not None:
        applies = prompts_matter(checks, [prompt for prompt, _, _ in pairs])
        threshold = checks.min_gain_over_ngrams if applies else None
        described = "a linear model of the answer's 2- to 4-grams, trained on the training pairs"
        _compare(report, "ngrams", threshold, pairs, right_N, _outcomes(ngrams, pairs), described)


def check_transfer(
    report: CheckReport, scorer: Scorer, checks: ChecksConfig, pairs: Sequence[Pair], ngrams: NgramModel | None
) -> None:
    """The accuracy on pairs from elsewhere, with both rules' on the same."""
    chosen_N = scorer("transfer", [(prompt, chosen) for prompt, chosen, _ in pairs])
    rejected_N = scorer("transfer", [(prompt, rejected) for prompt, _, rejected in pairs])
    keep = finite(chosen_N, rejected_N)
    if not keep.any():
        return
    pairs = [pair for pair, kept in zip(pairs, keep, strict=True) if kept]
    margin_N = (chosen_N - rejected_N)[keep]
    right_N, longer_N = pairwise_outcomes(margin_N, np.zeros_like(margin_N)), longer_wins(pairs)
    accuracy, longer = float(right_N.mean()), float(longer_N.mean())
    low, high = clustered_share_interval(right_N.tolist(), [prompt for prompt, _, _ in pairs])
    loss = float(np.logaddexp(0, -margin_N).mean())
    report.metrics |= {
        "transfer_accuracy": accuracy,
        "transfer_accuracy_low": low,
        "transfer_accuracy_high": high,
        "transfer_pairs": len(pairs),
        "transfer_loss": loss,
        "transfer_length_accuracy": longer,
    }
    detail = (
        f"accuracy {accuracy:.3f}, 95% interval {low:.3f} to {high:.3f}, {counted(len(pairs), 'pair')} of "
        f"data.preferences.transfer; log loss {loss:.3f} (a coin's is 0.693); longer wins {longer:.3f}"
    )
    if ngrams is not None:
        report.metrics["transfer_ngrams_accuracy"] = float(_outcomes(ngrams, pairs).mean())
        detail += f", n-grams {report.metrics['transfer_ngrams_accuracy']:.3f}"
    report.add("transfer", low, checks.min_transfer_accuracy, "at least", detail)


def longer_wins(pairs: Sequence[Pair]) -> Scores:
    """1 where the chosen answer has more characters, 0 where the rejected one has, 0.5 for a tie: (N,)."""
    lengths_N2 = np.array([[len(chosen), len(rejected)] for _, chosen, rejected in pairs], dtype=np.float64)
    return pairwise_outcomes(lengths_N2[:, 0], lengths_N2[:, 1])


def _outcomes(ngrams: NgramModel, pairs: Sequence[Pair]) -> Scores:
    prompts = [prompt for prompt, _, _ in pairs]
    chosen, rejected = (np.array(ngrams(prompts, [pair[side] for pair in pairs])) for side in (1, 2))
    return pairwise_outcomes(chosen, rejected)


def _compare(
    report: CheckReport,
    rule: str,
    threshold: float | None,
    pairs: Sequence[Pair],
    right_N: Scores,
    rule_N: Scores,
    detail: str,
) -> None:
    """The gain in accuracy over a rule, by the lower end of its paired interval, prompts resampled whole."""
    accuracy = float(rule_N.mean())
    gain, low, high = bootstrap_mean((right_N - rule_N).tolist(), clusters=enough([prompt for prompt, _, _ in pairs]))
    report.metrics |= {f"{rule}_accuracy": accuracy, f"gain_over_{rule}": gain}
    if len(pairs) < LEAST_FOR_INTERVAL:
        report.add(f"gain_over_{rule}", gain, None, "above", f"{counted(len(pairs), 'pair')}, too few to judge by")
        return
    report.metrics |= {f"gain_over_{rule}_low": low, f"gain_over_{rule}_high": high}
    detail = f"{gain:+.3f}, 95% interval {low:+.3f} to {high:+.3f}; the rule has {accuracy:.3f}; {detail}"
    report.add(f"gain_over_{rule}", low, threshold, "above", detail)
