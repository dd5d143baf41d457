"""How responses are sampled, and how PPO learns from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf_lib.recipe.section import Fraction, Positive, Section


class LengthSampler(Section):
    min: Positive = 4
    max: Positive = Field(16, description="exclusive")

    @model_validator(mode="after")
    def _ordered(self) -> LengthSampler:
        if self.max <= self.min:
            raise ValueError(f"max ({self.max}) is exclusive and must be above min ({self.min})")
        return self


class Generation(Section):
    max_new_tokens: Positive = 32
    length_sampler: LengthSampler | None = Field(
        None, description="draw each response's limit instead of max_new_tokens"
    )
    temperature: float = Field(1.0, gt=0, description="divides the logits, in every pass")
    top_k: int = Field(0, ge=0, description="0: off. Truncated sampling biases PPO; log-probs stay the full softmax's")
    top_p: float = Field(1.0, gt=0, le=1, description="1: off")
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
    steps: Positive = Field(100, description="one step: one rollout batch with all its PPO epochs")
    batch_size: Positive = 128
    mini_batch_size: Positive | None = Field(None, description="rows per optimizer step; null: the batch")
    micro_batch_tokens: Positive = Field(4096, description="tokens per forward pass; bounds memory, changes no figure")
    ppo_epochs: Positive = 4
    learning_rate: float = Field(1.41e-5, ge=0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="8bit: a quarter of the memory for its moments, with bitsandbytes"
    )
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    kl_coef: float = Field(0.2, ge=0, description="weight of the KL to the reference (the adaptive controller's start)")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Schulman 2020, approximating KL")
    kl_in: Literal["reward", "loss"] = "reward"
    kl_controller: Literal["adaptive", "fixed"] = "adaptive"
    kl_target: float = Field(6.0, gt=0, description="adaptive: nats per response")
    kl_horizon: Positive = Field(10000, description="adaptive: responses over which the coefficient moves")
    cliprange: float = Field(0.2, gt=0)
    cliprange_value: float = Field(0.2, gt=0)
    vf_coef: float = Field(0.1, ge=0)
    whiten_rewards: bool = False
    scale_scores: bool = Field(False, description="divide scores by their running std")
    normalize_scores: bool = Field(False, description="with scale_scores: take off their running mean too")
    clip_scores: float | None = Field(None, gt=0)
    ratio_threshold: float | None = Field(10.0, gt=1, description="a mini-batch with a larger mean ratio is skipped")
    target_kl: float | None = Field(
        None, gt=0, description="stop a batch's updates when approxkl passes 1.5 times this"
    )
    stop_at_reward: float | None = Field(None, description="stop when the mean raw score reaches this")
    old_logprobs: Literal["auto", "sampling", "recompute"] = Field(
        "auto", description="auto: those gathered while sampling, if the first batch shows that they agree"
    )
    checkpoint_every: Positive | None = 50
    keep_checkpoints: Positive = 2
    eval_every: Positive | None = Field(None, description="steps between scorings of the evaluation prompts")
    eval_prompts: Positive = Field(64, description="held-out prompts scored then, at most")
    eval_texts: list[str] | None = Field(
        None, min_length=1, description="prompts to answer then instead, in turn until there are eval_prompts"
    )
    keep_best: str | None = Field(
        None, description="export the step with the highest such statistic instead of the last: eval/mean_scores, say"
    )
    sample_every: Positive = Field(10, description="steps between sample responses in the tracker")
    samples: Positive = 8

    @model_validator(mode="after")
    def _consistent(self) -> PPO:
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator k1 has no gradient to speak of in the loss: set k2, or kl_in: reward")
        if self.keep_best is not None and self.keep_best.startswith("eval/") and self.eval_every is None:
            raise ValueError(f"keep_best {self.keep_best} needs eval_every")
        if self.mini_batch_size and self.batch_size % self.mini_batch_size:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of mini_batch_size")
        return self
