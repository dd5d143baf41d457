"""Reference against policy on held-out prompts: both sample with the same seed, and one reward scores both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.evaluation.diversity import distinct, repetition
from rlhf_lib.evaluation.figures import flat_figures
from rlhf_lib.evaluation.reward_delta import RewardDelta, kl_per_response, reward_delta
from rlhf_lib.models.logprobs import response_logprobs
from rlhf_lib.ppo.rollout import Responses, sample_responses
from rlhf_lib.recipe import GenerationConfig
from rlhf_lib.rewards import Reward


@dataclass(frozen=True)
class Sampled:
    """One model's responses, one a prompt, with their raw scores and lengths (tokens, EOS included)."""

    texts: list[str]
    scores: list[float]
    lengths: list[int]
    ended: list[bool]


@dataclass(frozen=True)
class Comparison:
    """Everything measured on N prompts. The KL is in nats per response, with its standard error."""

    queries: list[str]
    reference: Sampled
    policy: Sampled
    reward: RewardDelta
    kl: float
    kl_error: float
    diversity: dict[str, float | None]

    @property
    def deltas(self) -> list[float]:
        """What each prompt's score gained: N floats."""
        return [after - before for before, after in zip(self.reference.scores, self.policy.scores, strict=True)]

    def metrics(self) -> dict[str, float | None]:
        """Flat figures under the names that the tracker's compare view shows; None where one doesn't apply."""
        figures: dict[str, float | None] = {**flat_figures({"reward": asdict(self.reward)}), "kl": self.kl}
        figures["kl_standard_error"] = self.kl_error if len(self.queries) > 1 else None
        figures |= {f"diversity/{name}": figure for name, figure in self.diversity.items()}
        for name, side in (("reference", self.reference), ("policy", self.policy)):
            figures[f"length/{name}"] = fmean(side.lengths)
            figures[f"eos_rate/{name}"] = fmean(side.ended)
        return figures

    def table(self) -> dict[str, list]:
        """The before/after table, column by column."""
        return {
            "query": self.queries,
            "response_before": self.reference.texts,
            "response_after": self.policy.texts,
            "score_before": self.reference.scores,
            "score_after": self.policy.scores,
        }


def compare(
    reference: PreTrainedModel,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    queries: Sequence[str],
    prompt_ids: Sequence[list[int]],
    generation: GenerationConfig,
    *,
    seed: int = 0,
    micro_batch_tokens: int = 16384,
) -> Comparison:
    """Sample a response of each model to each prompt (`prompt_ids`: what it continues; `queries`: what the reward sees)
    and measure the difference. The KL is that of the distributions sampled from, temperature included."""
    before = sample_responses(reference, tokenizer, prompt_ids, generation, seed=seed)
    after = sample_responses(policy, tokenizer, prompt_ids, generation, seed=seed)
    sides = {"reference": scored(before, reward, queries), "policy": scored(after, reward, queries)}
    kl, kl_error = kl_per_response(
        *(
            response_logprobs(
                model,
                prompt_ids,
                after.response_ids,
                temperature=generation.temperature,
                micro_batch_tokens=micro_batch_tokens,
            )
            for model in (policy, reference)
        )
    )
    diversity: dict[str, float | None] = {}
    for name, side in sides.items():
        diversity |= {f"distinct_{n}_{name}": distinct(side.texts, n) for n in (1, 2)}
        diversity[f"repetition_{name}"] = repetition(side.texts)
    return Comparison(
        queries=list(queries),
        reference=sides["reference"],
        policy=sides["policy"],
        reward=reward_delta(sides["reference"].scores, sides["policy"].scores, seed=seed),
        kl=kl,
        kl_error=kl_error,
        diversity=diversity,
    )


def scored(responses: Responses, reward: Reward, queries: Sequence[str]) -> Sampled:
    """The responses with their scores."""
    return Sampled(
        texts=responses.texts,
        scores=reward(list(queries), responses.texts),
        lengths=[len(ids) for ids in responses.response_ids],
        ended=responses.ended,
    )
