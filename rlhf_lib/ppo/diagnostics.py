"""Symptoms of PPO going wrong, read off the history of its statistics: what is the matter, since which step, and which
setting to turn.

Every check is a pure function of the first steps (`START` of them) and of the latest (`WINDOW`), the last of which is
the step that it judges. It returns what it found in words, or None. The thresholds are rules of thumb: a symptom is a
reason to look, not a proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_lib.recipe import GenerationConfig, PPOConfig

Stats = Mapping[str, float]
History = Sequence[Stats]

START, WINDOW = 5, 10  # steps
LEAST_ENTROPY = 0.25  # of that of the first steps
MOST_CLIPPED = 0.3  # share of the tokens; 0.1 to 0.2 is usual
MOST_MOVED = 0.1  # approxkl of a step's updates, nats per token; 0.001 to 0.02 is usual
SPIKE, LEAST_SPIKE = 2.0, 2.0  # times the highest KL of the steps before, and nats above it
NEGATIVE_KL = -0.05  # nats per response; sampling alone gives less than that, three steps running
LONGER, SHORTER = 1.5, 0.5  # times the length of the first steps


@dataclass(frozen=True)
class Symptom:
    """Something that went wrong: `first` and `last` step at which it showed, on how many in all, what it was at the
    first, and the settings to turn."""

    kind: str
    first: int
    last: int
    steps: int
    found: str
    advice: str

    def __str__(self) -> str:
        when = f"step {self.first}"
        if self.steps > 1:
            when = f"steps {self.first} to {self.last}"
            if self.steps <= self.last - self.first:
                when = f"{self.steps} of {when}"
        return f"{when}: {self.found}. {self.advice}"


def symptoms_at(
    step: int, start: History, recent: History, config: PPOConfig, generation: GenerationConfig
) -> list[Symptom]:
    """What shows at this step (counted from 1). `start`: the statistics of the run's first `START` steps; `recent`:
    those of the latest `WINDOW`, the last of which is this step's."""
    found = {kind: words for kind, check in CHECKS.items() if (words := check(start, recent)) is not None}
    return [Symptom(kind, step, step, 1, words, ADVICE[kind](config, generation)) for kind, words in found.items()]


def diagnose(history: History, config: PPOConfig, generation: GenerationConfig) -> list[Symptom]:
    """Every kind of symptom that showed during the run, once, in the order of their first steps."""
    found: dict[str, Symptom] = {}
    for step in range(1, len(history) + 1):
        for new in symptoms_at(step, history[:START], history[max(0, step - WINDOW) : step], config, generation):
            known = found.get(new.kind, replace(new, steps=0))
            found[new.kind] = replace(known, last=step, steps=known.steps + 1)
    return [*found.values()]


# ------------------------------------------------------------ the checks


def useless_critic(start: History, recent: History) -> str | None:
    """Explained variance mostly at or below 0 over a whole window: a constant would predict the returns as well."""
    told = [stats for stats in recent if stats.get("ppo/returns/var", 1.0) > 1e-8]  # else there is nothing to explain
    values = _column(told, "ppo/val/var_explained")
    if len(values) < WINDOW or median(values) > 0:
        return None
    return (
        f"the value head predicts returns no better than their mean would (explained variance {median(values):.2f}, "
        f"median of {WINDOW} steps), so advantages are as noisy as without one"
    )


def entropy_collapse(start: History, recent: History) -> str | None:
    """Entropy per token a small part of what it was: the policy has nearly stopped sampling."""
    first, now = _means(start, recent, "ppo/policy/entropy")
    if first is None or now is None or now >= LEAST_ENTROPY * first:
        return None
    return f"entropy fell from {first:.2g} to {now:.2g} nats per token: the policy gives much the same answer each time"


def clipped_too_often(start: History, recent: History) -> str | None:
    """A large share of tokens beyond the clip range: the updates go further than their samples can tell."""
    values = _column(recent[-START:], "ppo/policy/clipfrac")
    if len(values) < START or fmean(values) <= MOST_CLIPPED:
        return None
    return f"the probability ratio of {fmean(values):.0%} of the tokens was clipped (mean of {START} steps)"


def moved_too_far(start: History, recent: History) -> str | None:
    """One step's updates moved the policy far from the one that sampled."""
    value = recent[-1].get("ppo/policy/approxkl")
    if value is None or value <= MOST_MOVED:
        return None
    return f"one step's updates moved the policy by {value:.2g} nats per token (ppo/policy/approxkl)"


def kl_spike(start: History, recent: History) -> str | None:
    """KL to the reference far above that of the steps before."""
    *before, now = _column(recent[-START - 1 :], "objective/kl") or [0.0]
    if len(before) < START or now <= SPIKE * max(before) or now <= max(before) + LEAST_SPIKE:
        return None
    return f"the KL to the reference jumped to {now:.3g} nats per response, from {median(before):.3g}"


def negative_kl(start: History, recent: History) -> str | None:
    """A KL estimate below 0 three steps running, beyond what sampling explains: the penalty pays the policy."""
    values = _column(recent[-3:], "objective/kl")
    if len(values) < 3 or max(values) >= NEGATIVE_KL:
        return None
    return (
        f"the KL to the reference is estimated at {values[-1]:.2g} nats per response, and a KL can't be negative: "
        "the responses don't come from the distribution whose log-probs are used, and the KL penalty pays for leaving "
        "the reference"
    )


def length_drift(start: History, recent: History) -> str | None:
    """Responses much longer or shorter than at the start."""
    first, now = _means(start, recent, "tokens/responses_len_mean")
    if not first or now is None or SHORTER * first <= now <= LONGER * first:
        return None
    return f"responses went from {first:.3g} to {now:.3g} tokens on average"


CHECKS: dict[str, Callable[[History, History], str | None]] = {
    "critic": useless_critic,
    "entropy": entropy_collapse,
    "clipping": clipped_too_often,
    "updates": moved_too_far,
    "kl_spike": kl_spike,
    "negative_kl": negative_kl,
    "length": length_drift,
}


def _column(history: History, name: str) -> list[float]:
    """A statistic's values at the steps that have it."""
    return [stats[name] for stats in history if name in stats]


def _means(start: History, recent: History, name: str) -> tuple[float | None, float | None]:
    """A statistic's mean over the first steps and over as many latest ones; None for fewer than that."""
    first, last = _column(start, name), _column(recent[-START:], name)
    if len(first) < START or len(last) < START:
        return None, None
    return fmean(first), fmean(last)


# ------------------------------------------------------------ what to do about them


CRITIC = "policy.critic to reward, where the reward is a model of the policy's family, else to separate"


def _critic(config: PPOConfig, generation: GenerationConfig) -> str:
    if config.value_learning_rate is None:
        rate = 10 * config.learning_rate
        advice = f"Set ppo.value_learning_rate to {rate:g}, ten times the learning rate, or {CRITIC}"
    else:
        advice = f"Raise ppo.value_learning_rate (now {config.value_learning_rate:g}), or set {CRITIC}"
    if config.lam < 1:
        advice += (
            f". Else set ppo.lam to 1 (now {config.lam:g}): while values don't pass the score on, a token hears of it "
            "by lam to the power of the tokens after it"
        )
    return advice


def _entropy(config: PPOConfig, generation: GenerationConfig) -> str:
    return f"Raise ppo.kl_coef (now {config.kl_coef:g}) or lower ppo.learning_rate (now {config.learning_rate:g})"


def _updates(config: PPOConfig, generation: GenerationConfig) -> str:
    advice = f"Lower ppo.learning_rate (now {config.learning_rate:g}) or ppo.ppo_epochs (now {config.ppo_epochs})"
    return advice if config.target_kl is not None else f"{advice}, or set ppo.target_kl"


def _kl(config: PPOConfig, generation: GenerationConfig) -> str:
    return f"Lower ppo.learning_rate (now {config.learning_rate:g}) or raise ppo.kl_coef (now {config.kl_coef:g})"


def _negative(config: PPOConfig, generation: GenerationConfig) -> str:
    if generation.top_k or generation.top_p < 1:
        return "Sample in full: generation.top_k: 0 and generation.top_p: 1"
    if config.old_logprobs != "recompute":
        return "Set ppo.old_logprobs: recompute"
    return "Set ppo.kl_estimator: k3, which is never negative"


def _length(config: PPOConfig, generation: GenerationConfig) -> str:
    return (
        "See in the samples whether that is what the reward should pay for; if it isn't, set "
        "generation.missing_eos_penalty against endless answers, or raise ppo.kl_coef"
    )


ADVICE: dict[str, Callable[[PPOConfig, GenerationConfig], str]] = {
    "critic": _critic,
    "entropy": _entropy,
    "clipping": _updates,
    "updates": _updates,
    "kl_spike": _kl,
    "negative_kl": _negative,
    "length": _length,
}
