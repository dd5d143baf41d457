"""What cheaper methods than PPO get by the same reward, and whether PPO got more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_lib.evaluation.best_of_n import BestOfN, kl_bound, size_at
from rlhf_lib.evaluation.measures import reward_delta
from rlhf_lib.evaluation.results import SFT_ON_CHOSEN, Baseline, BeforeAfter, Sampled, Scored
from rlhf_lib.rewards import Reward
from rlhf_lib.rewards.columns import with_ids
from rlhf_lib.rewards.judging import ask
from rlhf_lib.statistics import Interval, counted, no_interval


@dataclass(frozen=True)
class AtSameKL:
    """PPO beside the best-of-n whose KL bound is PPO's KL, on the same prompts; where that n is more than there are
    samples for, beside the largest."""

    kl: float  # PPO's, nats per response
    n: float  # of the best-of-n compared with
    most: int  # answers to a prompt that there are
    best_of_n: float  # their mean rewards
    policy: float
    gain: float  # of PPO over best-of-n
    ci95: Interval | None  # of the gain, paired
    prompts: int  # how many differ

    @property
    def beyond(self) -> bool:
        """Whether PPO's KL is larger than that of the largest n."""
        return self.kl > kl_bound(self.most)

    @property
    def metrics(self) -> dict[str, Any]:
        return {"n": self.n, "best_of_n": self.best_of_n, "policy": self.policy, "gain": self.gain, "ci95": self.ci95}

    @property
    def answer(self) -> str:
        """Did PPO buy more than best-of-n would have? In a few sentences."""
        between = f"95% interval {self.ci95[0]:+.3g} to {self.ci95[1]:+.3g}" if self.ci95 else no_interval(self.prompts)
        gained = f"a difference of {self.gain:+.3g} ({between})"
        verdict = self._verdict()
        if not self.beyond:
            at = f"At PPO's KL of {self.kl:.2f} nats, best-of-n would reach {self.best_of_n:.3g} (n = {self.n:.1f})"
            return f"{at}; PPO reached {self.policy:.3g}, {gained}. {verdict}"
        at = f"Best of {self.most} reaches {self.best_of_n:.3g} at a KL of at most {kl_bound(self.most):.2f} nats"
        needed = f"Best-of-n's bound is that large at n = {_large(size_at(self.kl))}."
        return f"{at}; PPO reached {self.policy:.3g} at {self.kl:.2f}, {gained}. {verdict} {needed}"

    def _verdict(self) -> str:
        if self.ci95 is None or self.ci95[0] <= 0 <= self.ci95[1]:
            return "The two can't be told apart" + (", though PPO's KL is larger." if self.beyond else ".")
        more = self.ci95[0] > 0
        if self.beyond:
            return f"PPO bought {'more' if more else 'less'}, for more KL."
        return f"PPO bought {'more' if more else 'less'} than best-of-n would have."


def at_same_kl(best: BestOfN, policy_P: Sequence[float], kl: float, seed: int = 0) -> AtSameKL:
    """PPO's scores on best-of-n's P prompts beside best-of-n at PPO's KL; an estimate of it below 0 counts as 0."""
    n, rewards = best.at_kl(max(kl, 0.0))
    gained = reward_delta(rewards, policy_P, prompts=best.queries, seed=seed)
    return AtSameKL(
        kl=kl,
        n=n,
        most=best.most,
        best_of_n=gained.reference,
        policy=gained.policy,
        gain=gained.delta,
        ci95=gained.ci95,
        prompts=gained.prompts,
    )


@dataclass(frozen=True)
class Baselines:
    """What the evaluation found of them; `others`: trained ones, on all of the evaluation's prompts."""

    best: BestOfN | None = None
    same_kl: AtSameKL | None = None
    others: list[Baseline] = field(default_factory=list)

    @property
    def all(self) -> list[Baseline]:
        return [*(self.best.baselines if self.best else []), *self.others]

    @property
    def record(self) -> dict[str, dict[str, Any]]:
        return {baseline.name: baseline.record for baseline in self.all}

    @property
    def metrics(self) -> dict[str, Any]:
        """To be flattened: `baseline/best_of_16/reward`, `baseline/same_kl/gain`, ..."""
        found = {}
        for name, told in self.record.items():
            shown = {key: told[key] for key in ("reward", "ci95", "kl", "prompts", "judges")}
            found[name] = shown | {"judges_lead": {judge: lead["delta"] for judge, lead in told["judges_lead"].items()}}
        tree: dict[str, Any] = {"baseline": found}
        if self.same_kl:
            tree["baseline"]["same_kl"] = self.same_kl.metrics
        return tree

    def told(self) -> list[str]:
        """Whether PPO is better than the strongest of each kind by the judges, in sentences."""
        strongest = [*(self.best.baselines[-1:] if self.best else []), *self.others]
        return [baseline.told(judge) for baseline in strongest for judge in baseline.judges_lead]

    def notes(self) -> list[str]:
        """How they were measured, in sentences."""
        told = []
        if self.best:
            answers = counted(self.best.most, "answer")
            told.append(
                f"Best of n: the reference's {answers} to each of {counted(len(set(self.best.queries)), 'prompt')}, "
                "sampled as all others, with random numbers of their own; the mean over all subsets of n, an unbiased "
                "estimate (Nakano et al. 2021). Its KL is at most log n - (n - 1) / n (Beirami et al. 2024)."
            )
        for other in self.others:
            if other.name == SFT_ON_CHOSEN:
                told.append(_CHOSEN if other.kl else "The reference is itself SFT on the chosen answers.")
        return told


def trained_baselines(
    comparison: BeforeAfter,
    *,
    chosen: bool = False,
    judges: Mapping[str, Reward] | None = None,
    policy: Scored | None = None,
) -> list[Baseline]:
    """The further models of a comparison as baselines; `chosen`: the reference is itself SFT on chosen answers;
    `policy`: PPO's scores."""
    queries = comparison.queries

    def baseline(name: str, answers: Sampled, kl: float | None) -> Baseline:
        judged = {
            judge: ask(scorer, judge, queries, answers.texts, answers.ended, with_ids(comparison.columns, answers.ids))
            for judge, scorer in (judges or {}).items()
        }
        return Baseline.of(name, queries, Scored(answers.scores, judged), kl, policy=policy)

    reference, _, *others = comparison.comparison.results
    found = [baseline(other.name, other.sampled, other.kl) for other in others]
    if chosen:
        found.append(baseline(SFT_ON_CHOSEN, reference.sampled, 0.0))
    return found


_CHOSEN = (
    "SFT on chosen answers: the reference's training once more, from where it started, on as many answers, all chosen."
)


def _large(n: float) -> str:
    return f"{n:,.0f}" if n < 1e6 else f"{n:.0e}"
