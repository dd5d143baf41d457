"""What is measured after PPO, and what a version needs to become champion."""

from __future__ import annotations

from pydantic import Field

from rlhf_lib.recipe.data import Source
from rlhf_lib.recipe.section import Positive, Section


class PerplexitySet(Source):
    """Texts whose perplexity is taken under the reference and under the policy."""

    split: str = Field("test", description="split, slices such as test[:1000] included")
    column: str = Field("chosen", description="column of the texts")
    prompt: str | None = Field(
        None,
        description="column of the prompt that each text answers: the text is scored given it. null: the whole text, "
        "or for a seq2seq policy what follows the query (cut as data.prompts.query says)",
    )
    add_start_token: bool = Field(True, description="score the first token too, after BOS (as Hugging Face's metric)")
    batch_size: Positive = Field(16, description="texts a forward pass, at most; changes no figure")
    limit: Positive | None = Field(None, description="texts scored, at most, drawn with the recipe's seed")


class TokenProbe(Section):
    """Which of two words follows a text: the difference of their next-token logits, before and after."""

    prompt: str = Field(description="text that the model continues")
    token: str = Field(description="word to follow it, with its leading space where the tokenizer has one")
    against: str = Field(description="the other word")


class Evaluation(Section):
    """The policy after PPO beside its reference: rewards, perplexity, diversity, samples."""

    prompts: Positive = Field(256, description="held-out prompts, at most")
    perplexity: PerplexitySet | None = None
    probes: list[TokenProbe] = Field([], description="next-token logit differences, shown in the report")


class Gates(Section):
    """What a version needs to become champion; null switches a gate off."""

    min_reward_delta: float | None = Field(0.0, description="the 95% interval of the reward's gain must lie above this")
    max_perplexity_ratio: float | None = Field(2.0, gt=0, description="perplexity, policy to reference")
    max_kl: float | None = Field(None, gt=0, description="KL to the reference, nats per response")
    min_distinct_2_ratio: float | None = Field(
        0.5, ge=0, description="share of bigrams that differ, policy to reference"
    )


class Registration(Section):
    """The version in MLflow's registry that each run makes."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="registered model; null: the recipe's name"
    )
    promote: bool = Field(True, description="false: a passing version stays challenger")
    gates: Gates = Gates()
