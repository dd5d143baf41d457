"""The judges (`evaluation.judges`): rewards that PPO doesn't optimise, on the same responses as the reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from rlhf_lib.evaluation.measures import RewardDelta, reward_delta
from rlhf_lib.evaluation.results import BeforeAfter, Comparison, Sampled
from rlhf_lib.recipe import Recipe, RewardConfig
from rlhf_lib.recipe.judges import JudgeConfig, is_rewarded
from rlhf_lib.rewards import Reward
from rlhf_lib.rewards.build import build_reward
from rlhf_lib.rewards.check_measures import pairwise_outcomes
from rlhf_lib.rewards.judging import ask
from rlhf_lib.statistics import LEAST_FOR_INTERVAL, Interval, counted, mean_interval, no_interval, rank_correlation

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

_RIDGE = 1e-6  # on the slope alone: it is finite where length tells the winner


@dataclass(frozen=True)
class Accuracy:
    """How often a judge prefers the chosen answer of a pair, ties counting half; the interval is clustered by prompt,
    None for a handful of them."""

    share: float
    ci95: Interval | None
    pairs: int


@dataclass(frozen=True)
class Judgement:
    """What a judge says of the policy against the reference.

    `gained`: its scores, as the reward's. `length_controlled`: the win rate between answers of equal length, None for a
    handful of prompts. `agreement`: rank correlation of what each prompt gained by the reward and by the judge, None
    where one of them never differs. `accuracy`: on test pairs, where there are any. `only_reports`: why its gain is no
    gate; empty if it is one.
    """

    name: str
    gained: RewardDelta
    length_controlled: float | None
    agreement: float | None
    accuracy: Accuracy | None = None
    only_reports: str = ""

    @property
    def record(self) -> dict[str, Any]:
        """In JSON, under the names that the reward's figures have."""
        accuracy = self.accuracy
        return self.gained.record | {
            "length_controlled_win_rate": self.length_controlled,
            "rank_correlation": self.agreement,
            "accuracy": accuracy and accuracy.share,
            "accuracy_ci95": accuracy and accuracy.ci95 and list(accuracy.ci95),
            "accuracy_pairs": accuracy and accuracy.pairs,
            "only_reports": self.only_reports or None,
        }

    def told(self, reward: RewardDelta, policy: str = "the policy", reference: str = "the reference") -> str:
        """In a sentence, beside what the reward says."""
        gained = self.gained
        if gained.ci95 is None:
            return f"Judge {self.name}: {gained.delta:+.3g} for {policy}, {no_interval(gained.prompts)}."
        low, high = gained.ci95
        rose = reward.ci95 is not None and reward.ci95[0] > 0
        though = f", though the reward rose by {reward.delta:+.3g}" if rose else ""
        if low > 0:
            says = f"finds {policy} better than {reference}{', as the reward does' if rose else ''}"
        elif high < 0:
            says = f"finds {policy} worse than {reference}{though}"
        else:
            says = f"sees no sure difference between {policy} and {reference}{though}"
        silent = f" It only reports: {self.only_reports}." if self.only_reports else ""
        return f"Judge {self.name} {says}: {gained.delta:+.3g} (95% interval {low:+.3g} to {high:+.3g}).{silent}"


def opinions(judge: Reward, name: str, comparison: Comparison) -> list[list[float]]:
    """The judge's scores of each of K models' responses: K rows of N."""
    sides = [result.sampled for result in comparison.results]
    return [ask(judge, name, comparison.queries, side.texts, side.ended) for side in sides]


def judgement(
    name: str,
    queries: Sequence[str],
    reference: Sampled,
    policy: Sampled,
    scores: tuple[Sequence[float], Sequence[float]],
    *,
    accuracy: Accuracy | None = None,
    only_reports: str = "",
    seed: int = 0,
) -> Judgement:
    """From a judge's `scores` of the reference's responses and of the policy's, (N,) each. Responses to equal `queries`
    are a cluster of the interval."""
    before_N, after_N = scores
    rewarded = [after - before for before, after in zip(reference.scores, policy.scores, strict=True)]
    judged = [after - before for before, after in zip(before_N, after_N, strict=True)]
    longer = [len(after) - len(before) for before, after in zip(reference.texts, policy.texts, strict=True)]
    few = len(set(queries)) < LEAST_FOR_INTERVAL
    return Judgement(
        name,
        reward_delta(before_N, after_N, prompts=queries, seed=seed),
        None if few else length_controlled_win_rate(judged, longer),
        rank_correlation(rewarded, judged),
        accuracy,
        only_reports,
    )


def length_controlled_win_rate(gains_N: Sequence[float], longer_N: Sequence[float]) -> float:
    """Win rate between answers of equal length, from what each of N prompts gained and by how much the answer to it
    grew longer.

    As in AlpacaEval 2 (Dubois et al. 2024, "Length-Controlled AlpacaEval", without its terms for the instructions): a
    logistic regression of winning, ties counting half, on tanh(length difference / its standard deviation), evaluated
    at a difference of 0.
    """
    won_N = (np.sign(np.asarray(gains_N, dtype=np.float64)) + 1) / 2
    differences_N = np.asarray(longer_N, dtype=np.float64)
    if differences_N.std() == 0 or won_N.min() == won_N.max():
        return float(won_N.mean())
    length_N = np.tanh(differences_N / differences_N.std())

    def loss(intercept_slope: np.ndarray) -> tuple[float, np.ndarray]:
        intercept, slope = intercept_slope
        logit_N = intercept + slope * length_N
        error_N = expit(logit_N) - won_N
        value = np.mean(np.logaddexp(0, logit_N) - won_N * logit_N) + _RIDGE * slope**2
        return float(value), np.array([error_N.mean(), (error_N * length_N).mean() + 2 * _RIDGE * slope])

    return float(expit(minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9}).x[0]))


def pair_accuracy(judge: Reward, name: str, pairs: Dataset, most: int) -> Accuracy:
    """On `pairs` (columns prompt, chosen, rejected), at most so many of them."""
    pairs = pairs.select(range(min(most, len(pairs))))
    prompts = list(pairs["prompt"])
    chosen, rejected = (np.array(ask(judge, name, prompts, pairs[side])) for side in ("chosen", "rejected"))
    right = pairwise_outcomes(chosen, rejected).tolist()
    return Accuracy(float(np.mean(right)), mean_interval(right, clusters=prompts), len(right))


def why_only_reports(
    judge: JudgeConfig, reward: RewardConfig, accuracy: Accuracy | None, acts: str | None = None
) -> str:
    """Why the judge's gain may not decide on promotion; empty if it may. `accuracy`: on pairs that it never saw, None
    where the recipe has none. `acts`: what it decides in PPO (`PPOConfig.acting_judges`): the policy was selected by
    it, and so its own figure is too good."""
    if not judge.gate:
        return "its gate is false"
    if acts is not None:
        return f"it {acts}"
    if is_rewarded(judge, reward):
        return "it is a part of the reward"
    if accuracy is None:
        return ""
    if accuracy.ci95 is None:
        return f"its accuracy isn't known: {no_interval(accuracy.pairs, 'test pair')}"
    if accuracy.ci95[0] > 0.5:
        return ""
    low, high = accuracy.ci95
    return (
        f"it prefers the better answer in {accuracy.share:.0%} of {counted(accuracy.pairs, 'test pair')} (95% interval "
        f"{low:.0%} to {high:.0%}), not surely more often than a coin"
    )


def judge_policy(
    recipe: Recipe,
    comparison: BeforeAfter,
    judges: Mapping[str, Reward],
    pairs: Dataset | None,
) -> tuple[list[Judgement], dict[str, list[float]]]:
    """What every judge of the recipe says, and its scores as columns of a table, `judge/NAME_before` and
    `judge/NAME_after`. `judges`: by name; `pairs`: those that none was trained on."""
    found: list[Judgement] = []
    columns: dict[str, list[float]] = {}
    queries, sides = comparison.queries, (comparison.reference, comparison.policy)
    for name, settings in recipe.evaluation.judges.items():
        judge = judges[name]
        accuracy = pair_accuracy(judge, name, pairs, settings.checks.pairs) if pairs is not None else None
        before, after = (ask(judge, name, queries, side.texts, side.ended) for side in sides)
        columns |= {f"judge/{name}_before": before, f"judge/{name}_after": after}
        silent = why_only_reports(settings, recipe.reward, accuracy, recipe.ppo.acting_judges.get(name))
        found.append(
            judgement(name, queries, *sides, (before, after), accuracy=accuracy, only_reports=silent, seed=recipe.seed)
        )
    return found, columns


def judge_models(
    recipe: Recipe, comparison: Comparison, models: Mapping[str, str], device: torch.device
) -> tuple[dict[str, list[Judgement]], dict[str, list[float]]]:
    """Every judge of the recipe in turn: what it says of each model against the first, by its name, and its scores as
    columns of a table, `judge/NAME MODEL`. `models`: folders of those that a run of the recipe trained."""
    found: dict[str, list[Judgement]] = {}
    columns: dict[str, list[float]] = {}
    queries, results = comparison.queries, comparison.results
    for name, settings in recipe.evaluation.judges.items():
        judge = build_reward(settings, models.get(name), device)
        scores = opinions(judge, name, comparison)
        columns |= {f"judge/{name} {result.name}": given for result, given in zip(results, scores, strict=True)}
        first = results[0].sampled
        found[name] = [
            judgement(name, queries, first, result.sampled, (scores[0], given), seed=recipe.seed)
            for result, given in zip(results[1:], scores[1:], strict=True)
        ]
    return found, columns
