"""How responses are sampled, and how PPO learns from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf_lib.recipe.section import Fraction, Positive, Section


class LengthSampler(Section):
    """Each response's limit drawn evenly from [min, max), by seed, step and row."""

    min: Positive = Field(4, description="smallest limit, in tokens")
    max: Positive = Field(16, description="exclusive")

    @model_validator(mode="after")
    def _ordered(self) -> LengthSampler:
        if self.max <= self.min:
            raise ValueError(f"max ({self.max}) is exclusive and must be above min ({self.min})")
        return self


class Generation(Section):
    """How responses are sampled, in PPO and in evaluation."""

    max_new_tokens: Positive = Field(32, description="tokens of a response, at most")
    length_sampler: LengthSampler | None = Field(
        None, description="draw each response's limit instead of max_new_tokens"
    )
    temperature: float = Field(1.0, gt=0, description="divides the logits, in every pass")
    top_k: int = Field(0, ge=0, description="0: off. Truncated sampling biases PPO; log-probs stay the full softmax's")
    top_p: float = Field(1.0, gt=0, le=1, description="1: off, as top_k")
    stop: str | None = Field(None, description="text that ends a response, beside the tokenizer's EOS")
    ignore_eos: bool = Field(False, description="every response runs to its limit")
    missing_eos_penalty: float | None = Field(
        None, ge=0, description="taken off the score of a response cut by its limit"
    )

    @property
    def response_limit(self) -> int:
        """Tokens of the longest response."""
        return self.length_sampler.max - 1 if self.length_sampler else self.max_new_tokens


class PPO(Section):
    """Proximal policy optimisation, see docs/ppo.md; the names are the field's."""

    steps: Positive = Field(100, description="one step: one rollout batch with all its PPO epochs")
    batch_size: Positive = Field(128, description="prompts answered a step")
    mini_batch_size: Positive | None = Field(None, description="rows per optimizer step; null: the batch")
    micro_batch_tokens: Positive = Field(4096, description="tokens per forward pass; bounds memory, changes no figure")
    ppo_epochs: Positive = Field(4, description="passes over a batch, each in a fresh order")
    learning_rate: float = Field(1.41e-5, ge=0, description="AdamW's, once warm")
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="8bit: a quarter of the memory for its moments, with bitsandbytes"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="of the learning rate over the steps; linear and cosine end at 0"
    )
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises from 0")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay of its two moments")
    eps: float = Field(1e-8, description="AdamW's, in its denominator")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, decoupled")
    max_grad_norm: float | None = Field(1.0, gt=0, description="gradients are clipped to this norm; null: never")
    gamma: Fraction = Field(1.0, description="discount of later rewards")
    lam: Fraction = Field(0.95, description="lambda of generalised advantage estimation (Schulman et al. 2016)")
    kl_coef: float = Field(0.2, ge=0, description="weight of the KL to the reference (the adaptive controller's start)")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k1", description="k1: log-ratio; k2: its square / 2; k3: ratio - 1 - log-ratio (Schulman 2020)"
    )
    kl_in: Literal["reward", "loss"] = Field(
        "reward", description="reward: taken off each token's reward; loss: a term of the loss, with k2 or k3"
    )
    kl_controller: Literal["adaptive", "fixed"] = Field(
        "adaptive",
        description="adaptive: the coefficient steers the KL to kl_target (Ziegler et al. 2019); fixed: it stays",
    )
    kl_target: float = Field(6.0, gt=0, description="adaptive: nats per response")
    kl_horizon: Positive = Field(10000, description="adaptive: responses over which the coefficient moves")
    cliprange: float = Field(0.2, gt=0, description="how far from 1 the ratio of probabilities still pays")
    cliprange_value: float = Field(0.2, gt=0, description="how far a value may move from its old one, likewise")
    vf_coef: float = Field(0.1, ge=0, description="weight of the value loss")
    whiten_rewards: bool = Field(False, description="scale a batch's rewards to std 1, their mean kept")
    scale_scores: bool = Field(False, description="divide scores by their running std")
    normalize_scores: bool = Field(False, description="with scale_scores: take off their running mean too")
    clip_scores: float | None = Field(None, gt=0, description="scores are cut to plus or minus this, once scaled")
    ratio_threshold: float | None = Field(10.0, gt=1, description="a mini-batch with a larger mean ratio is skipped")
    target_kl: float | None = Field(
        None, gt=0, description="stop a batch's updates when approxkl passes 1.5 times this"
    )
    stop_at_reward: float | None = Field(None, description="stop when the mean raw score reaches this")
    old_logprobs: Literal["auto", "sampling", "recompute"] = Field(
        "auto", description="auto: those gathered while sampling, if the first batch shows that they agree"
    )
    checkpoint_every: Positive | None = Field(50, description="steps between checkpoints; null: none")
    keep_checkpoints: Positive = Field(2, description="the newest so many stay on disk")
    eval_every: Positive | None = Field(None, description="steps between scorings of the evaluation prompts")
    eval_prompts: Positive = Field(64, description="held-out prompts scored then, at most")
    eval_texts: list[str] | None = Field(
        None, min_length=1, description="prompts to answer then instead, in turn until there are eval_prompts"
    )
    keep_best: str | None = Field(
        None, description="export the step with the highest such statistic instead of the last: eval/mean_scores, say"
    )
    sample_every: Positive = Field(10, description="steps between sample responses in the tracker")
    samples: Positive = Field(8, description="responses shown then")

    @model_validator(mode="after")
    def _consistent(self) -> PPO:
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator k1 has no gradient to speak of in the loss: set k2, or kl_in: reward")
        if self.keep_best is not None and self.keep_best.startswith("eval/") and self.eval_every is None:
            raise ValueError(f"keep_best {self.keep_best} needs eval_every")
        if self.mini_batch_size and self.batch_size % self.mini_batch_size:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of mini_batch_size")
        return self
