"""What a comparison of models found: each one's responses and metrics, and who beats whom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from rlhf_lib.evaluation.measures import RewardDelta, distinct, flat_metrics, repetition, reward_delta
from rlhf_lib.rewards.calling import Columns
from rlhf_lib.statistics import Interval, counted, mean_interval, no_interval

SFT_ON_CHOSEN = "sft_on_chosen"  # a baseline's name
UNHELD = (
    "No prompts are held out (data.prompts.held_out is 0): the figures are of prompts that the policy was trained on, "
    "and say nothing about others."
)


@dataclass(frozen=True)
class ModelSource:
    """A model's name in tables, and the folder or hub id that it is loaded from."""

    name: str
    folder: str


@dataclass(frozen=True)
class Sampled:
    """One model's responses, one a prompt, with their raw scores and lengths (tokens, EOS included)."""

    texts: list[str]
    scores: list[float]
    lengths: list[int]
    ended: list[bool]
    ids: list[list[int]] | None = None  # token ids, where they are known

    def at(self, rows: Sequence[int]) -> Sampled:
        """Those of these rows."""
        columns = (self.texts, self.scores, self.lengths, self.ended, self.ids)
        return Sampled(*(None if column is None else [column[i] for i in rows] for column in columns))  # type: ignore[arg-type]


@dataclass(frozen=True)
class ModelResult:
    """What one model did on the N prompts; None where a metric doesn't apply."""

    name: str
    sampled: Sampled
    mean: float  # of the scores
    ci95: Interval | None  # of their mean; None for a handful of prompts
    gain: RewardDelta | None  # over the first model's, paired; None for the first
    kl: float | None  # to the anchor, nats per response; None for itself, or where the tokenizers differ
    kl_error: float | None
    perplexity: float | None
    mean_perplexity: float | None
    distinct_1: float
    distinct_2: float
    repetition: float | None

    @classmethod
    def of(
        cls,
        name: str,
        sampled: Sampled,
        prompts: Sequence[str] | None = None,
        *,
        first: Sequence[float] | None = None,
        kl: tuple[float, float] | None = None,
        measured: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> ModelResult:
        """`prompts`: what was answered; answers to the same one are a cluster of the intervals. `first`: the first
        model's scores, None for itself. `kl`: with its standard error. `measured`: perplexity."""
        measured = measured or {}
        return cls(
            name=name,
            sampled=sampled,
            mean=fmean(sampled.scores),
            ci95=mean_interval(sampled.scores, clusters=prompts, seed=seed),
            gain=None if first is None else reward_delta(first, sampled.scores, prompts=prompts, seed=seed),
            kl=kl[0] if kl else None,
            kl_error=kl[1] if kl and math.isfinite(kl[1]) else None,
            perplexity=measured.get("perplexity"),
            mean_perplexity=measured.get("mean_perplexity"),
            distinct_1=distinct(sampled.texts, 1),
            distinct_2=distinct(sampled.texts, 2),
            repetition=repetition(sampled.texts),
        )

    @property
    def rows(self) -> dict[str, float | None]:
        """The metrics that a table shows, by their names there."""
        return {
            "mean score": self.mean,
            "perplexity, token-weighted": self.perplexity,
            "perplexity, mean per text": self.mean_perplexity,
            "KL": self.kl,
            "distinct-1": self.distinct_1,
            "distinct-2": self.distinct_2,
            "repeated bigrams in a response": self.repetition,
            "response length, tokens": fmean(self.sampled.lengths),
            "responses that end themselves": fmean(self.sampled.ended),
        }


@dataclass(frozen=True)
class Comparison:
    """K models on N prompts. `anchor`: whom the KL is measured to. `win_rates[i][j]`: on what share of the prompts the
    i-th scores higher than the j-th, ties counting half; None on the diagonal."""

    queries: list[str]
    results: list[ModelResult]
    anchor: str | None
    win_rates: list[list[float | None]]
    same_tokens: bool  # whether all have one tokenizer, without which perplexities by token don't compare
    held_out: bool = True  # whether no prompt is a training prompt
    columns: Columns = field(default_factory=dict)  # the prompts' others

    @property
    def distinct(self) -> int:
        """How many different prompts there are."""
        return len(set(self.queries))

    @property
    def asked(self) -> str:
        """The prompts in words: `256 held-out prompts`, `72 answers to 20 training prompts`."""
        prompts = counted(self.distinct, f"{'held-out' if self.held_out else 'training'} prompt")
        repeated = self.distinct < len(self.queries)
        return f"{counted(len(self.queries), 'answer')} to {prompts}" if repeated else prompts

    @property
    def caveat(self) -> str:
        """What a reader must know about prompts that aren't held out; empty for those that are."""
        return "" if self.held_out else UNHELD

    def metrics(self) -> dict[str, float]:
        """Flat metrics, `reward/delta/NAME`; what doesn't apply is left out."""
        metrics: dict[str, float] = {}
        for result, row in zip(self.results, self.win_rates, strict=True):
            reward: dict[str, Any] = {"mean": result.mean}
            if result.ci95:
                reward |= dict(zip(("mean_low", "mean_high"), result.ci95, strict=True))
            if result.gain:
                gained = asdict(result.gain)
                reward |= {key: gained[key] for key in ("delta", "ci95", "win_rate")}
            tree = {
                "reward": reward,
                "kl": result.kl,
                "kl_standard_error": result.kl_error,
                "perplexity": result.perplexity,
                "perplexity_mean_per_text": result.mean_perplexity,
                "distinct_1": result.distinct_1,
                "distinct_2": result.distinct_2,
                "repetition": result.repetition,
                "length": fmean(result.sampled.lengths),
                "eos_rate": fmean(result.sampled.ended),
            }
            own = slug(result.name)
            metrics |= {f"{name}/{own}": value for name, value in flat_metrics(tree).items()}
            for other, share in zip(self.results, row, strict=True):
                if share is not None:
                    metrics[f"wins/{own}/{slug(other.name)}"] = share
        return metrics

    def table(self) -> dict[str, list[Any]]:
        """Every response with its score, side by side, column by column."""
        columns: dict[str, list[Any]] = {"query": self.queries}
        for result in self.results:
            columns[result.name] = result.sampled.texts
            columns[f"score {result.name}"] = result.sampled.scores
        return columns


@dataclass(frozen=True)
class BeforeAfter:
    """The comparison of two, a reference and the policy made from it, under the names that the pipeline logs. Further
    models are baselines."""

    comparison: Comparison

    @property
    def queries(self) -> list[str]:
        return self.comparison.queries

    @property
    def columns(self) -> Columns:
        return self.comparison.columns

    @property
    def asked(self) -> str:
        return self.comparison.asked

    @property
    def caveat(self) -> str:
        return self.comparison.caveat

    @property
    def reference(self) -> Sampled:
        return self.comparison.results[0].sampled

    @property
    def policy(self) -> Sampled:
        return self.comparison.results[1].sampled

    @property
    def reward(self) -> RewardDelta:
        gain = self.comparison.results[1].gain
        assert gain is not None
        return gain

    @property
    def kl(self) -> float:
        """Nats per response."""
        kl = self.comparison.results[1].kl
        assert kl is not None
        return kl

    @property
    def kl_error(self) -> float | None:
        """Standard error of the KL; None for a single prompt."""
        return self.comparison.results[1].kl_error

    @property
    def diversity(self) -> dict[str, float | None]:
        sides = zip(("reference", "policy"), self.comparison.results[:2], strict=True)
        return {
            f"{name}_{side}": getattr(result, name)
            for side, result in sides
            for name in ("distinct_1", "distinct_2", "repetition")
        }

    @property
    def deltas(self) -> list[float]:
        """What each prompt's score gained: N floats."""
        return [after - before for before, after in zip(self.reference.scores, self.policy.scores, strict=True)]

    def metrics(self) -> dict[str, float | None]:
        """Flat metrics under the names that the tracker's compare view shows; None where one doesn't apply."""
        metrics: dict[str, float | None] = {**flat_metrics({"reward": asdict(self.reward)}), "kl": self.kl}
        metrics["kl_standard_error"] = self.kl_error
        metrics |= {f"diversity/{name}": value for name, value in self.diversity.items()}
        for name, side in (("reference", self.reference), ("policy", self.policy)):
            metrics[f"length/{name}"] = fmean(side.lengths)
            metrics[f"eos_rate/{name}"] = fmean(side.ended)
        return metrics

    def table(self) -> dict[str, list[Any]]:
        """Every response before and after, with its score, column by column."""
        return {
            "query": self.queries,
            "response_before": self.reference.texts,
            "response_after": self.policy.texts,
            "score_before": self.reference.scores,
            "score_after": self.policy.scores,
        }


@dataclass(frozen=True)
class Scored:
    """What the reward and each judge give one answer to each of P prompts, (P,) each; of best-of-n, in expectation."""

    reward: Sequence[float]
    judges: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def at(self, rows: Sequence[int]) -> Scored:
        """Of these prompts alone."""
        return Scored(
            [self.reward[row] for row in rows],
            {name: [scores[row] for row in rows] for name, scores in self.judges.items()},
        )


@dataclass(frozen=True)
class Baseline:
    """What one cheaper method gets. `judges`: what each of the recipe's judges gives its answers, on average;
    `judges_ci95`: by prompt, as `ci95`. `lead` and `judges_lead`: what PPO gains on it, by the reward and by each."""

    name: str  # in the record and in metrics: best_of_16, sft_on_chosen
    reward: float
    ci95: Interval | None  # by prompt; None for a handful of prompts
    kl: float | None  # to the reference, nats per response
    kl_is_bound: bool  # true: the KL is at most that
    prompts: int  # how many differ
    judges: dict[str, float] = field(default_factory=dict)
    judges_ci95: dict[str, Interval | None] = field(default_factory=dict)
    lead: RewardDelta | None = None
    judges_lead: dict[str, RewardDelta] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        queries: Sequence[str],
        scored: Scored,
        kl: float | None,
        *,
        kl_is_bound: bool = False,
        policy: Scored | None = None,
        seed: int = 0,
    ) -> Baseline:
        """From its scores on P prompts; `policy`: PPO's on the same."""

        def interval(scores: Sequence[float]) -> Interval | None:
            return mean_interval(scores, clusters=queries, seed=seed)

        def lead(before: Sequence[float], after: Sequence[float]) -> RewardDelta:
            return reward_delta(before, after, prompts=queries, seed=seed)

        return cls(
            name=name,
            reward=fmean(scored.reward),
            ci95=interval(scored.reward),
            kl=kl,
            kl_is_bound=kl_is_bound,
            prompts=len(set(queries)),
            judges={judge: fmean(scores) for judge, scores in scored.judges.items()},
            judges_ci95={judge: interval(scores) for judge, scores in scored.judges.items()},
            lead=lead(scored.reward, policy.reward) if policy else None,
            judges_lead={judge: lead(scores, policy.judges[judge]) for judge, scores in scored.judges.items()}
            if policy
            else {},
        )

    @property
    def record(self) -> dict[str, Any]:
        interval = list(self.ci95) if self.ci95 else None
        return {
            "reward": self.reward,
            "ci95": interval,
            "kl": self.kl,
            "prompts": self.prompts,
            "judges": dict(self.judges),
            "judges_ci95": {name: list(ci95) if ci95 else None for name, ci95 in self.judges_ci95.items()},
            "lead": self.lead and _lead(self.lead),
            "judges_lead": {name: _lead(lead) for name, lead in self.judges_lead.items()},
        }

    def told(self, judge: str) -> str:
        """Whether PPO is better by this judge, in a sentence."""
        lead = self.judges_lead[judge]
        if lead.ci95 is None:
            return f"By the judge {judge}, PPO and {self.title}: {lead.delta:+.3g}, {no_interval(self.prompts)}."
        low, high = lead.ci95
        found = f"{lead.delta:+.3g} (95% interval {low:+.3g} to {high:+.3g}, {counted(self.prompts, 'prompt')})"
        if low <= 0 <= high:
            return f"By the judge {judge}, PPO and {self.title} can't be told apart: {found}."
        return f"By the judge {judge}, PPO is {'better' if low > 0 else 'worse'} than {self.title}: {found}."

    @property
    def title(self) -> str:
        """Its name in words."""
        return title(self.name)


def _lead(gained: RewardDelta) -> dict[str, Any]:
    return {key: gained.record[key] for key in ("delta", "ci95")}


def title(name: str) -> str:
    """A baseline's name in words: `best of 16`, `SFT on chosen answers`."""
    return "SFT on chosen answers" if name == SFT_ON_CHOSEN else name.replace("_", " ")


def slug(name: str) -> str:
    """A name as part of a metric's."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
