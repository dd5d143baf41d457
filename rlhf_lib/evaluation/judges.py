"""The judges (`evaluation.judges`): rewards that PPO doesn't optimise, on the same responses as the reward, and
language models that compare them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from rlhf_lib.conversation import prompts_of
from rlhf_lib.errors import JudgeFailed
from rlhf_lib.evaluation.llm.judge import LLMJudge
from rlhf_lib.evaluation.llm.verdicts import Verdicts
from rlhf_lib.evaluation.measures import RewardDelta, reward_delta
from rlhf_lib.evaluation.opinions import Judge, Opinion, build_judge, opinion, opinions
from rlhf_lib.evaluation.results import BeforeAfter, Comparison, Sampled
from rlhf_lib.recipe import Recipe, RewardConfig
from rlhf_lib.recipe.judges import JudgeConfig, is_rewarded
from rlhf_lib.rewards.build import needed_columns
from rlhf_lib.rewards.check_baselines import longer_wins
from rlhf_lib.rewards.check_measures import pairwise_outcomes
from rlhf_lib.rewards.judging import ask
from rlhf_lib.statistics import LEAST_FOR_INTERVAL, Interval, counted, mean_interval, no_interval, rank_correlation

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

_FIGURES = ("reference", "policy", "delta", "ci95", "win_rate", "prompts")

_RIDGE = 1e-6  # on the slope alone: it is finite where length tells the winner


@dataclass(frozen=True)
class Accuracy:
    """How often a judge prefers the chosen answer of a pair, ties counting half, and how often the longer answer is the
    chosen one. `gain_ci95`: of the difference between the two on the same pairs. The intervals are clustered by prompt,
    None for a handful of them."""

    share: float
    ci95: Interval | None
    pairs: int
    length_rule: float
    gain_ci95: Interval | None


@dataclass(frozen=True)
class Judgement:
    """What a judge says of the policy against the reference.

    `gained`: its scores, as the reward's. `length_controlled`: the win rate between answers of equal length, None for a
    handful of prompts. `agreement`: rank correlation of what each prompt gained by the reward and by the judge, None
    where one of them never differs. `accuracy`: on test pairs, where there are any. `only_reports`: why its gain is no
    gate; empty if it is one. `failed`: why it has no opinion, and then no figures; empty if it has. `asked`: how a
    language model's comparisons went (see `Shares.record`).
    """

    name: str
    gained: RewardDelta | None
    length_controlled: float | None
    agreement: float | None
    accuracy: Accuracy | None = None
    only_reports: str = ""
    failed: str = ""
    asked: Mapping[str, int] | None = None

    @property
    def record(self) -> dict[str, Any]:
        """In JSON, under the names that the reward's figures have."""
        accuracy = self.accuracy
        gained = self.gained.record if self.gained else dict.fromkeys(_FIGURES)
        asked = {"asked": dict(self.asked)} if self.asked else {}
        return gained | {
            "length_controlled_win_rate": self.length_controlled,
            "rank_correlation": self.agreement,
            "accuracy": accuracy and accuracy.share,
            "accuracy_ci95": accuracy and accuracy.ci95 and list(accuracy.ci95),
            "accuracy_pairs": accuracy and accuracy.pairs,
            "length_accuracy": accuracy and accuracy.length_rule,
            "gain_over_length_ci95": accuracy and accuracy.gain_ci95 and list(accuracy.gain_ci95),
            "only_reports": self.only_reports or None,
            "failed": self.failed or None,
            **asked,
        }

    def told(self, reward: RewardDelta, policy: str = "the policy", reference: str = "the reference") -> str:
        """In a sentence, beside what the reward says."""
        gained = self.gained
        if gained is None:
            return f"Judge {self.name} has no opinion: {self.failed}."
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
        found = f"{gained.delta:+.3g} (95% interval {low:+.3g} to {high:+.3g})"
        return f"Judge {self.name} {says}: {found}.{self._how()}{silent}"

    def _how(self) -> str:
        """What a language model couldn't tell, where there is such."""
        asked = self.asked or {}
        parts = {
            "over_budget": "not asked, over its max_requests",
            "unreadable": "without a readable verdict",
            "refused": "refused by its endpoint",
        }
        lost = [f"{counted(asked[key], 'prompt')} {words}" for key, words in parts.items() if asked.get(key)]
        swayed = asked.get("swayed_by_order")
        told = [f"{counted(swayed, 'tie')} for a winner that changed with the order"] if swayed else []
        return f" ({'; '.join(lost + told)}.)" if lost or told else ""


def failure(name: str, why: str, only_reports: str = "") -> Judgement:
    """Of a judge that couldn't be asked."""
    return Judgement(name, None, None, None, only_reports=only_reports, failed=why)


def judgement(
    name: str,
    queries: Sequence[str],
    reference: Sampled,
    policy: Sampled,
    scores: tuple[Sequence[float], Sequence[float]] | Opinion,
    *,
    accuracy: Accuracy | None = None,
    only_reports: str = "",
    seed: int = 0,
) -> Judgement:
    """From a judge's `scores` of the reference's responses and of the policy's, (N,) each. Responses to equal `queries`
    are a cluster of the interval. Of an opinion, the rows that have scores count."""
    asked = None
    if isinstance(scores, Opinion):
        rows, asked, scores = scores.rows, scores.asked, scores.scores
        queries, reference, policy = [queries[i] for i in rows], reference.at(rows), policy.at(rows)
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
        asked=asked,
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


def pair_accuracy(judge: Judge, name: str, pairs: Dataset, most: int, *, keep: int = 0) -> Accuracy | None:
    """On `pairs` (columns prompt, chosen, rejected), at most so many of them; a language model leaves `keep` requests
    of its budget unspent, and where it can tell no pair there is no accuracy."""
    pairs = pairs.select(range(min(most, len(pairs))))
    prompts = prompts_of(pairs, "prompt")
    if isinstance(judge, LLMJudge):
        shares = judge.compare(prompts, list(pairs["rejected"]), list(pairs["chosen"]), keep=keep)
        right_N = np.array([share for share in shares.values if share is not None])
        if not right_N.size:
            return None
        pairs = pairs.select(shares.known)
        prompts = prompts_of(pairs, "prompt")
    else:
        chosen, rejected = (np.array(ask(judge, name, prompts, pairs[side])) for side in ("chosen", "rejected"))
        right_N = pairwise_outcomes(chosen, rejected)
    longer_N = longer_wins(list(zip(prompts, pairs["chosen"], pairs["rejected"], strict=True)))
    return Accuracy(
        float(right_N.mean()),
        mean_interval(right_N.tolist(), clusters=prompts),
        len(right_N),
        float(longer_N.mean()),
        mean_interval((right_N - longer_N).tolist(), clusters=prompts),
    )


def why_only_reports(
    judge: JudgeConfig,
    reward: RewardConfig,
    accuracy: Accuracy | None,
    acts: str | None = None,
    *,
    pairs: bool = False,
) -> str:
    """Why the judge's gain may not decide on promotion; empty if it may. `accuracy`: on pairs that it never saw, None
    where the recipe has none. It must be surely above a coin's, and above that of the rule "the longer answer wins":
    a judge that knows no more would promote a policy for writing more. `acts`: what it decides in PPO
    (`PPOConfig.acting_judges`): the policy was selected by it, and so its own figure is too good. `pairs`: whether
    there are pairs even without an accuracy."""
    if not judge.gate:
        return "its gate is false"
    if acts is not None:
        return f"it {acts}"
    if is_rewarded(judge, reward):
        return "it is a part of the reward"
    if accuracy is None:
        return (
            "its accuracy isn't known: it could tell none of the test pairs (is llm.max_requests spent?)"
            if pairs
            else ""
        )
    if accuracy.ci95 is None or accuracy.gain_ci95 is None:
        return f"its accuracy isn't known: {no_interval(accuracy.pairs, 'test pair')}"
    low, high = accuracy.ci95
    told = f"{accuracy.share:.0%} of {counted(accuracy.pairs, 'test pair')}"
    failed = []
    if low <= 0.5:
        failed.append(
            f"it prefers the better answer in {told} (95% interval {low:.0%} to {high:.0%}), not surely more often "
            "than a coin"
        )
    low, high = accuracy.gain_ci95
    if low <= 0:
        than = f"the rule that the longer answer wins ({accuracy.length_rule:.0%}"
        gain = f"95% interval of the difference {low:+.1%} to {high:+.1%})"
        failed.append(f"it is right on {told}, not surely more than {than}; {gain}")
    return "; ".join(failed)


def judge_policy(
    recipe: Recipe,
    comparison: BeforeAfter,
    judges: Mapping[str, Judge | JudgeFailed],
    pairs: Dataset | None,
) -> tuple[list[Judgement], dict[str, list[float | None]]]:
    """What every judge of the recipe says, and its scores as columns of a table, `judge/NAME_before` and
    `judge/NAME_after`. `judges`: by name, or why one couldn't be had; `pairs`: those that none was trained on. A
    language model that can't be asked fails alone. Of its budget the prompts come first, then what a comparison with a
    champion takes is set aside, and the rest is for the pairs."""
    found: list[Judgement] = []
    columns: dict[str, list[float | None]] = {}
    sides = (comparison.reference, comparison.policy)
    for name, settings in recipe.evaluation.judges.items():
        judge = judges[name]
        try:
            if isinstance(judge, JudgeFailed):
                raise judge
            told = opinion(judge, name, comparison.queries, *sides, comparison.columns)
            most, aside = settings.checks.pairs, 2 * len(comparison.queries) * settings.gate
            tests = None if needed_columns(settings) else pairs  # which have none of the prompts' columns
            accuracy = pair_accuracy(judge, name, tests, most, keep=aside) if tests is not None else None
        except JudgeFailed as error:
            found.append(failure(name, str(error), why_only_reports(settings, recipe.reward, None)))
            continue
        columns |= {f"judge/{name}_before": told.before, f"judge/{name}_after": told.after}
        acts = recipe.ppo.acting_judges.get(name)
        silent = why_only_reports(settings, recipe.reward, accuracy, acts, pairs=tests is not None)
        found.append(
            judgement(
                name,
                comparison.queries,
                *sides,
                told,
                accuracy=accuracy,
                only_reports=silent,
                seed=recipe.seed,
            )
        )
    return found, columns


def judge_models(
    recipe: Recipe,
    comparison: Comparison,
    models: Mapping[str, str],
    device: torch.device,
    *,
    verdicts: Callable[[], Verdicts] | None = None,
    run: str = "",
) -> tuple[dict[str, list[Judgement]], dict[str, list[float | None]]]:
    """Every judge of the recipe in turn: what it says of each model against the first, by its name, and its scores as
    columns of a table, `judge/NAME MODEL`; of a language model, what each wins against the first. `models`: folders of
    those that a run of the recipe trained. `verdicts`, `run`: see `build_judge`."""
    found: dict[str, list[Judgement]] = {}
    columns: dict[str, list[float | None]] = {}
    first, *others = comparison.results
    for name, settings in recipe.evaluation.judges.items():
        try:
            judge = build_judge(name, settings, models.get(name), device, verdicts=verdicts, run=run)
            told = opinions(judge, name, comparison)
        except JudgeFailed as error:
            found[name] = [failure(name, str(error)) for _ in others]
            continue
        if not isinstance(judge, LLMJudge):
            columns[f"judge/{name} {first.name}"] = told[0].before
        columns |= {f"judge/{name} {result.name}": one.after for result, one in zip(others, told, strict=True)}
        found[name] = [
            judgement(name, comparison.queries, first.sampled, result.sampled, one, seed=recipe.seed)
            for result, one in zip(others, told, strict=True)
        ]
    return found, columns
