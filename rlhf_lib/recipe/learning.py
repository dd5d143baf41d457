"""The sections policy, generation and ppo: what learns, and how."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from rlhf_lib.recipe.chat_template import read_template
from rlhf_lib.recipe.data import Fraction, Positive, Section


class FromScratchConfig(Section):
    """A small model and its byte-level BPE tokenizer, both made from the training text."""

    architecture: Literal["gpt2", "t5"] = Field(
        "gpt2", description="gpt2: causal; t5: encoder and decoder, trained on data.corpus"
    )
    layers: Positive = Field(4, description="transformer blocks; t5: of encoder and decoder each")
    width: Positive = Field(256, description="size of the hidden states; a multiple of heads")
    heads: Positive = Field(4, description="attention heads")
    positions: Positive = Field(256, description="longest sequence in tokens, prompt and response together")
    vocab_size: Positive = Field(4096, description="tokens in the vocabulary, including 256 bytes, EOS and pad")

    @model_validator(mode="after")
    def _divisible(self) -> FromScratchConfig:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class TrainConfig(Section):
    """Supervised training of the base model on data.corpus or the preference pairs' texts, before anything else."""

    from_scratch: FromScratchConfig | None = Field(None, description="null: fine-tune policy.model")
    answers: Literal["chosen", "both"] = Field("chosen", description="which answers of the pairs to train on")
    completion_only: bool = Field(
        False,
        description="loss on the answer alone rather than on the whole dialogue; of a conversation, on the last answer "
        "rather than on all the assistant's turns",
    )
    epochs: float = Field(1.0, gt=0, description="passes over the texts; fractions are fine")
    max_steps: Positive | None = Field(None, description="optimizer steps, instead of epochs")
    batch_size: Positive = Field(16, description="texts per optimizer step")
    learning_rate: float = Field(
        5e-4, gt=0, description="AdamW's peak, reached after 5% warm-up; it then follows a cosine down"
    )
    max_length: Positive | None = Field(
        None, description="longest training text in tokens; null: the model's positions"
    )


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021, with peft), for both policy.train and PPO; merged before registration."""

    r: Positive = Field(32, description="rank")
    alpha: Positive = Field(32, description="the adapter is scaled by alpha / r")
    dropout: Fraction = Field(0.0, description="in SFT only: the passes that form PPO's ratio use no dropout")
    target_modules: list[str] | None = Field(
        None, description="layers that get an adapter, by the end of their names; null: peft's default for the model"
    )
    dora: bool = Field(False, description="DoRA: magnitude and direction are trained separately (Liu et al. 2024)")


class PolicyConfig(Section):
    """The language model to train. A frozen copy of it, as it was at the start, is the reference for the KL."""

    model: str | None = Field(None, description="hub id, local folder or registry URI such as models:/NAME@champion")
    chat: Literal["auto", "off"] = Field(
        "auto",
        description="auto: where the tokenizer has a chat template, prompts and answers are conversations in it; off: "
        "plain texts",
    )
    system: str | None = Field(None, description="chat: system message of conversations that have none of their own")
    chat_template: Annotated[str, AfterValidator(read_template)] | None = Field(
        None,
        description="chat: a Jinja file instead of the tokenizer's own template, or one that comes with rlhf: chatml, "
        "smollm2. Control tokens that the tokenizer lacks are added to it, where policy.train learns them",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="chat: variables that the template reads, say {enable_thinking: false}"
    )
    chat_date: date = Field(
        date(2024, 7, 26), description="chat: what a template that writes today's date gets, in training and serving"
    )
    train: TrainConfig | None = Field(None, description="how to train the base model first")
    lora: LoraConfig | None = None
    unfrozen_layers: int | None = Field(
        None,
        description="only the top N blocks learn, or with -N all but the bottom N; tied embeddings and a seq2seq "
        "model's encoder are frozen too. A causal model's frozen part runs once a batch",
    )
    critic: Literal["shared", "separate", "reward"] = Field(
        "shared",
        description="the value head's trunk: the policy's; a copy; or that of the reward model, whose score head the "
        "value head then starts as",
    )
    gradient_checkpointing: bool = Field(False, description="less memory, for a second forward pass in each update")
    trust_remote_code: bool = Field(False, description="run the Python code that comes with the model")

    @field_validator("chat", mode="before")
    @classmethod
    def _off(cls, given: Any) -> Any:
        return "off" if given is False else given  # what YAML makes of off

    @property
    def chat_settings(self) -> dict[str, Any]:
        """What decides how conversations are rendered, JSON."""
        keys = {key for key in type(self).model_fields if key.startswith("chat")}
        return self.model_dump(mode="json", include=keys | {"system"})

    @model_validator(mode="after")
    def _some_model(self) -> PolicyConfig:
        scratch = self.train is not None and self.train.from_scratch is not None
        if self.model is None and not scratch:
            raise ValueError("needs model, or train.from_scratch")
        if self.model is not None and scratch:
            raise ValueError("model and train.from_scratch are mutually exclusive: set one of them to null")
        if self.unfrozen_layers == 0:
            raise ValueError("unfrozen_layers 0 would leave nothing to learn: set null for all, or a number of blocks")
        if self.lora is not None and self.unfrozen_layers is not None:
            raise ValueError("lora and unfrozen_layers are mutually exclusive: set one of them to null")
        if self.chat == "off" and (self.system or self.chat_template or self.chat_template_kwargs):
            raise ValueError("chat is off, so system, chat_template and chat_template_kwargs do nothing: drop them")
        return self


class LengthSamplerConfig(Section):
    """Each response's length limit, drawn uniformly from [min, max) by seed, step and row."""

    min: Positive = Field(4, description="smallest limit, in tokens")
    max: Positive = Field(16, description="exclusive")

    @model_validator(mode="after")
    def _ordered(self) -> LengthSamplerConfig:
        if self.max <= self.min:
            raise ValueError(f"max ({self.max}) is exclusive and must be above min ({self.min})")
        return self


class GenerationConfig(Section):
    """How responses are sampled, in PPO and in evaluation."""

    max_new_tokens: Positive = Field(32, description="longest response in tokens")
    length_sampler: LengthSamplerConfig | None = Field(
        None, description="draws a limit for each response, instead of max_new_tokens"
    )
    temperature: float = Field(1.0, gt=0, description="divides the logits, in every pass")
    top_k: int = Field(0, ge=0, description="0: off. Truncated sampling biases PPO; log-probs stay the full softmax's")
    top_p: float = Field(1.0, gt=0, le=1, description="1: off, as top_k")
    stop: str | None = Field(None, description="text that ends a response, beside the tokenizer's EOS")
    ignore_eos: bool = Field(False, description="every response runs to its limit")
    missing_eos_penalty: float | None = Field(
        None, ge=0, description="subtracted from the score of a response that was cut off at its limit"
    )

    @property
    def response_limit(self) -> int:
        """Tokens of the longest response."""
        return self.length_sampler.max - 1 if self.length_sampler else self.max_new_tokens

    @property
    def response_limit_key(self) -> str:
        """The recipe's key that sets it."""
        return f"generation.{'length_sampler.max' if self.length_sampler else 'max_new_tokens'}"


JUDGE = "eval/judge/"  # the statistic of a judge is called this and its name


class StopWhenConfig(Section):
    """When a judge says that PPO has gone too far, as early stopping does by a held-out loss."""

    judge: str = Field(description="one of evaluation.judges, asked at every eval_every")
    falls_for: Positive = Field(
        3, description="evaluations in a row at which it must be below its best, the one before training included"
    )


class PPOConfig(Section):
    """Proximal policy optimization (docs/ppo.md), with the field's usual names."""

    steps: Positive = Field(100, description="one step: one rollout batch with all its PPO epochs")
    batch_size: Positive = Field(128, description="prompts answered per step")
    mini_batch_size: Positive | None = Field(
        None, description="rows per optimizer step; null: the batch. The last may be smaller"
    )
    micro_batch_tokens: Positive = Field(
        4096, description="tokens per forward pass; bounds memory; doesn't change results"
    )
    ppo_epochs: Positive = Field(4, description="passes over a batch, each in a fresh order")
    learning_rate: float = Field(1.41e-5, ge=0, description="AdamW's, after warm-up")
    value_learning_rate: float | None = Field(
        None, ge=0, description="the value head's, and that of a critic with a trunk of its own; null: learning_rate"
    )
    critic_warmup: int = Field(
        0,
        ge=0,
        description="steps at the start in which the value function alone learns: the policy stays as it is, and its "
        "learning-rate schedule and the adaptive KL coefficient begin after them",
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="8bit: the moments take a quarter of the memory (needs bitsandbytes)"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="the learning rate's course over the steps; linear and cosine end at 0"
    )
    warmup_steps: int | None = Field(
        None,
        ge=0,
        description="steps with a lower learning rate at the start, rising to the full one; null: a twentieth of all "
        "steps, at most 10",
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay of its two moments")
    eps: float = Field(1e-8, description="AdamW's, added to its denominator")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, decoupled")
    max_grad_norm: float | None = Field(1.0, gt=0, description="gradients are clipped to this norm; null: never")
    gamma: Fraction = Field(1.0, description="discount of later rewards")
    lam: Fraction = Field(0.95, description="lambda of generalised advantage estimation (Schulman et al. 2016)")
    kl_coef: float = Field(0.2, ge=0, description="weight of the KL to the reference (the adaptive controller's start)")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k1", description="k1: the log-ratio; k2: half its square; k3: ratio - 1 - log-ratio (Schulman 2020)"
    )
    kl_in: Literal["reward", "loss"] = Field(
        "reward", description="reward: subtracted from each token's reward; loss: a term of the loss (with k2 or k3)"
    )
    kl_controller: Literal["adaptive", "fixed"] = Field(
        "adaptive",
        description="adaptive: the coefficient is adjusted to steer the KL to kl_target (Ziegler et al. 2019); fixed: "
        "it stays the same",
    )
    kl_target: float = Field(6.0, gt=0, description="adaptive: nats per response")
    kl_horizon: Positive | None = Field(
        None,
        description="adaptive: responses over which the coefficient moves; fewer: faster. null: a twentieth of the "
        "run's, steps x batch_size, but at least batch_size",
    )
    cliprange: float = Field(
        0.2, gt=0, description="how far the probability ratio may move from 1 before moving further gains nothing"
    )
    cliprange_value: float = Field(0.2, gt=0, description="the same for a value and its distance from the old value")
    vf_coef: float = Field(0.1, ge=0, description="weight of the value loss")
    whiten_rewards: bool = Field(False, description="scale a batch's rewards to std 1, keeping their mean")
    scale_scores: bool = Field(False, description="divide scores by their running std")
    normalize_scores: bool = Field(False, description="with scale_scores: subtract their running mean too")
    clip_scores: float | None = Field(None, gt=0, description="clip scores to plus or minus this, after scaling")
    ratio_threshold: float | None = Field(10.0, gt=1, description="skip mini-batches whose mean ratio is larger")
    target_kl: float | None = Field(
        None, gt=0, description="stop a batch's updates when approxkl passes 1.5 times this"
    )
    stop_at_reward: float | None = Field(None, description="stop when the mean raw score reaches this")
    old_logprobs: Literal["auto", "sampling", "recompute"] = Field(
        "auto", description="auto: those from sampling, if they agree with a scoring pass on the first batch"
    )
    checkpoint_every: Positive | None = Field(50, description="steps between checkpoints; null: none")
    keep_checkpoints: Positive = Field(2, description="how many of the newest stay on disk")
    eval_every: Positive | None = Field(
        None, description="steps between scoring rounds on the evaluation prompts; null: none"
    )
    eval_prompts: Positive = Field(64, description="most evaluation prompts in such a round")
    eval_texts: list[str] | None = Field(
        None, min_length=1, description="prompts to use instead, repeated until there are eval_prompts of them"
    )
    keep_best: str | None = Field(
        None,
        description="export the step at which this statistic (say eval/mean_scores, or judge/NAME for one of "
        "evaluation.judges) is highest, not the last step. For one of eval/ or a judge, up to eval_prompts training "
        "prompts are kept from training, and evaluated on instead of the evaluation's",
    )
    keep_best_max_kl: float | None = Field(
        None, gt=0, description="with keep_best: only of steps whose objective/kl is at most this; null: of all"
    )
    keep_best_kl_coef: float = Field(
        0.0,
        ge=0,
        description="with keep_best: what a nat of KL costs. The step with the highest statistic - this x KL is "
        "exported (eval/kl, or objective/kl for a statistic of training)",
    )
    stop_when: StopWhenConfig | None = Field(
        None,
        description="stop when a judge has fallen, on the prompts of keep_best: eval/..., never the evaluation's",
    )
    sample_every: Positive = Field(10, description="steps between the samples shown in MLflow")
    samples: Positive = Field(8, description="responses shown each time")

    @property
    def horizon(self) -> int:
        """`kl_horizon`, or its default: with an error at its limit of 0.2 the coefficient then changes by a factor of e
        in a quarter of the run, however long that is, and by 20% a step at most."""
        return self.kl_horizon or max(self.batch_size, self.steps * self.batch_size // 20)

    @property
    def warmup(self) -> int:
        """`warmup_steps`, or its default."""
        return min(10, self.steps // 20) if self.warmup_steps is None else self.warmup_steps

    @property
    def best_statistic(self) -> str | None:
        """`keep_best` as a step's statistic is called: judge/NAME is short for eval/judge/NAME."""
        kept = self.keep_best
        return f"eval/{kept}" if kept is not None and kept.startswith("judge/") else kept

    @property
    def acting_judges(self) -> dict[str, str]:
        """The judges that have a say in what PPO exports, by name: what each decides, with the key that says so."""
        acting: dict[str, list[str]] = {}
        if (self.best_statistic or "").startswith(JUDGE):
            acting[str(self.best_statistic).removeprefix(JUDGE)] = ["picks the step that is exported (ppo.keep_best)"]
        if self.stop_when is not None:
            acting.setdefault(self.stop_when.judge, []).append("decides when PPO stops (ppo.stop_when)")
        return {name: " and ".join(does) for name, does in acting.items()}

    @model_validator(mode="after")
    def _consistent(self) -> PPOConfig:
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator k1 has almost no gradient in the loss: set k2, or kl_in: reward")
        if (self.best_statistic or "").startswith("eval/") and self.eval_every is None:
            raise ValueError(f"keep_best {self.keep_best} needs eval_every")
        if self.stop_when is not None and self.eval_every is None:
            raise ValueError("stop_when needs eval_every, the steps between two evaluations by the judge")
        for name, given in (("max_kl", self.keep_best_max_kl), ("kl_coef", self.keep_best_kl_coef)):
            if given and self.keep_best is None:
                raise ValueError(
                    f"keep_best_{name} needs keep_best, the statistic to pick a step by, say ppo/mean_scores"
                )
        if self.critic_warmup and not self.vf_coef:
            raise ValueError(
                "critic_warmup trains the value function, which vf_coef 0 switches off: set vf_coef above 0, or "
                "critic_warmup to 0"
            )
        if self.critic_warmup >= self.steps:
            raise ValueError(
                f"critic_warmup ({self.critic_warmup}) leaves the policy none of the {self.steps} steps to learn in: "
                "lower it, or raise steps"
            )
        if self.mini_batch_size and self.mini_batch_size > self.batch_size:
            raise ValueError(f"mini_batch_size ({self.mini_batch_size}) is more than batch_size ({self.batch_size})")
        return self
