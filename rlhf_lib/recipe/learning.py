"""The sections policy, reward, generation and ppo: what learns, from which reward, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

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
    completion_only: bool = Field(False, description="loss on the answer alone rather than on the whole dialogue")
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
    train: TrainConfig | None = Field(None, description="how to train the base model first")
    lora: LoraConfig | None = None
    unfrozen_layers: int | None = Field(
        None,
        description="only the top N blocks learn, or with -N all but the bottom N; tied embeddings and a seq2seq "
        "model's encoder are frozen too. A causal model's frozen part runs once a batch",
    )
    critic: Literal["shared", "separate"] = Field(
        "shared", description="the value head's trunk: the policy's, or a copy"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, for a second forward pass in each update")
    trust_remote_code: bool = Field(False, description="run the Python code that comes with the model")

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
        return self


class ClassifierFromScratchConfig(Section):
    """A small RoBERTa and its byte-level BPE tokenizer, both made from the labelled texts."""

    layers: Positive = Field(2, description="transformer blocks")
    width: Positive = Field(192, description="size of the hidden states; a multiple of heads")
    heads: Positive = Field(4, description="attention heads")
    positions: Positive = Field(128, description="longest text in tokens")
    vocab_size: Positive = Field(8192, description="tokens in the vocabulary")
    dropout: Fraction = Field(0.1, description="during training; scoring uses none")

    @model_validator(mode="after")
    def _divisible(self) -> ClassifierFromScratchConfig:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class RewardTrainingConfig(Section):
    """kind preference: TRL's RewardTrainer on the pairs (Bradley-Terry, pairwise logistic loss); kind classifier with
    data.labelled: cross-entropy, or a binary one per label where texts have several."""

    from_scratch: ClassifierFromScratchConfig | None = Field(
        None, description="kind classifier: instead of reward.model"
    )
    epochs: float = Field(1.0, gt=0, description="passes over the pairs or texts; fractions are fine")
    max_steps: Positive | None = Field(None, description="optimizer steps, instead of epochs")
    batch_size: Positive = Field(32, description="pairs or texts per optimizer step")
    learning_rate: float = Field(1e-4, gt=0, description="AdamW's peak, reached after 5% warm-up; it then falls to 0")
    max_length: Positive | None = Field(
        None, description="longest dialogue in tokens; longer ones are cut on the left; null: the model's positions"
    )
    center_coefficient: float | None = Field(
        None, ge=0, description="weight of the squared sum of a pair's scores, which keeps them centred (0.01 is usual)"
    )
    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="kind preference: share of the training pairs, whole prompts, that aren't trained on; the loss on "
        "them is measured about 10 times, and the weights with the lowest are kept. 0: none, and the last are kept",
    )
    patience: Positive | None = Field(
        None, description="with validation: training stops after so many measurements without a lower loss; null: never"
    )

    @model_validator(mode="after")
    def _patience_needs_validation(self) -> RewardTrainingConfig:
        if self.patience is not None and not self.validation:
            raise ValueError("patience needs validation, a share of the pairs to measure on: set it, say to 0.1")
        return self


class ProbeConfig(Section):
    """A sentence pair whose order is known: the reward model must prefer `better`."""

    query: str = Field("", description="what both answer")
    better: str = Field(description="the response that must score higher")
    worse: str = Field(description="the other")


class ChecksConfig(Section):
    """Thresholds of the reward model's sanity checks; null switches a gate off, and its value is still reported."""

    pairs: Positive = Field(1000, description="held-out pairs used, at most")
    min_pairs: Positive | None = Field(
        50, description="held-out pairs needed, where there are preferences: on fewer an accuracy says little"
    )
    min_accuracy: Fraction | None = Field(
        0.6,
        description="lower bound of the 95% interval of the accuracy on held-out pairs; null: the pairs aren't about "
        "what this reward rewards, so min_gain_over_length, min_gain_over_ngrams, min_prompt_sensitivity and "
        "max_phrase_win_rate are off too",
    )
    min_gain_over_length: float | None = Field(
        0.0,
        ge=-1,
        le=1,
        description="what the lower bound of the accuracy's gain over the rule 'the longer answer wins' must be above, "
        "both on the same pairs",
    )
    min_gain_over_ngrams: float | None = Field(
        0.0,
        ge=-1,
        le=1,
        description="the same over a linear model of the answer's 2- to 4-grams, trained on the training pairs: what "
        "the answers' wording tells without the prompt; gated where the pairs are dialogues",
    )
    min_transfer_accuracy: Fraction | None = Field(
        None, description="lower bound of the accuracy on data.preferences.transfer; null: it is only reported"
    )
    min_prompt_sensitivity: Fraction | None = Field(
        0.5,
        description="how often a chosen answer must score higher with its own prompt than with another's: the lower "
        "bound of the 95% interval; gated where the pairs are dialogues",
    )
    probes: list[ProbeConfig] = Field([], description="sentence pairs whose order is known")
    min_probe_accuracy: Fraction | None = Field(1.0, description="share of the probes in their order")
    max_calibration_error: Fraction | None = Field(
        0.15,
        description="by how much the share of pairs in order may fall short of what sigmoid(score difference) claims, "
        "beyond what chance explains; trained preference models only",
    )
    min_score_std: float | None = Field(
        1e-4,
        description="scores must differ between texts; where the data has no answers, between the starting policy's",
    )
    max_length_correlation: Fraction | None = Field(0.6, description="absolute rank correlation of score and length")
    max_degenerate_win_rate: Fraction | None = Field(
        0.65,  # a model that reads words but not their order is at 0.5 on shuffled text, give or take 0.035
        description="how often empty, repeated-word or word-shuffled responses may beat a real one, and over-long ones "
        "a chosen one",
    )
    max_phrase_win_rate: Fraction | None = Field(
        0.65,
        description="how often one phrase of the pairs' answers, on its own and to any prompt, may beat the chosen "
        "answer: the best-paid one is tried; gated where the pairs are dialogues",
    )
    max_batch_difference: float | None = Field(1e-3, description="batched against single scoring, in score units")
    why: dict[str, str] = Field(
        {}, description="gate: reason, for gates that are null; shown in the reports and on the model card"
    )

    @property
    def switched_off(self) -> dict[str, str | None]:
        """The gates that are null although they have a default, each with its reason or None."""
        fields = type(self).model_fields
        off = [name for name in fields if name.startswith(("min_", "max_")) and getattr(self, name) is None]
        return {name: self.why.get(name) for name in off if fields[name].default is not None}

    @model_validator(mode="after")
    def _gates_known(self) -> ChecksConfig:
        gates = [name for name in type(self).model_fields if name.startswith(("min_", "max_"))]
        for name in self.why:
            if name not in gates:
                raise ValueError(f"why: there is no gate '{name}'. The gates are {', '.join(gates)}")
        return self

    @model_validator(mode="after")
    def _enough_pairs(self) -> ChecksConfig:
        if self.min_pairs is not None and self.pairs < self.min_pairs:
            raise ValueError(
                f"pairs ({self.pairs}) is below min_pairs ({self.min_pairs}), so every reward would be refused: raise "
                "pairs, or lower min_pairs"
            )
        return self


class RewardConfig(Section):
    """The reward: (queries, responses) in, one number per response out. It sees text, never tokens."""

    kind: Literal["classifier", "preference", "pair", "likelihood", "function", "sum"] = Field(
        "preference",
        description="classifier: scores query + response; an existing one, or trained here on data.labelled; "
        "preference: trained here on the pairs; pair: an existing model that encodes (query, response) as a pair; "
        "likelihood: mean log-probability of the text under a language model; function: your own, by import path; sum: "
        "a weighted sum of these",
    )
    model: str | None = Field(
        None,
        description="hub id or folder; what training starts from for preference (null: the base model) and for "
        "classifier with data.labelled (null: train.from_scratch)",
    )
    label: str | None = Field(None, description="the classifier's label to reward; null only where it has one output")
    output: Literal["logit", "probability", "softmax"] = Field(
        "logit",
        description="probability: sigmoid for a classifier whose labels don't exclude each other, else softmax; "
        "softmax: always over all labels",
    )
    function: str | None = Field(None, description="package.module:name of f(queries, responses) -> scores")
    terms: list[TermConfig] | None = Field(
        None, description="sum: each {weight, reward}; a preference term names its model"
    )
    batch_size: Positive = Field(64, description="texts scored together; doesn't change results")
    max_length: Positive | None = Field(
        None, description="tokens that the reward model sees; longer texts are cut on the left"
    )
    normalize: bool = Field(
        False, description="scale scores for PPO to mean 0, std 1 on the reference policy's samples"
    )
    train: RewardTrainingConfig = RewardTrainingConfig()
    checks: ChecksConfig = ChecksConfig()
    trust_remote_code: bool = Field(False, description="run the Python code that comes with the model")

    @model_validator(mode="after")
    def _complete(self) -> RewardConfig:
        if self.kind in ("pair", "likelihood") and self.model is None:
            raise ValueError(f"kind {self.kind} needs model")
        if self.train.validation and self.kind != "preference":
            raise ValueError("train.validation is for kind preference")
        if self.train.from_scratch is not None and (self.kind != "classifier" or self.model is not None):
            raise ValueError("train.from_scratch is for kind classifier without model")
        if any(term.reward.kind == "classifier" and term.reward.model is None for term in self.terms or []):
            raise ValueError("a classifier in a sum needs model")
        if (self.kind == "sum") != bool(self.terms):
            raise ValueError("kind sum needs terms, a list of {weight, reward}, and no other kind has them")
        if any(term.reward.kind == "preference" and term.reward.model is None for term in self.terms or []):
            raise ValueError("a preference model in a sum must be trained already: name it by reward.model")
        if self.kind == "function" and not self.function:
            raise ValueError("kind function needs function: package.module:name")
        return self


class TermConfig(Section):
    """One reward of a sum."""

    weight: float = Field(1.0, description="its score is multiplied by this; negative: a penalty")
    reward: RewardConfig = Field(
        description="a section like `reward`, of any kind; its checks and training are ignored"
    )


RewardConfig.model_rebuild()


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
        None, ge=0, description="the value head's, and that of a separate critic; null: learning_rate"
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
        description="export the step at which this statistic (say eval/mean_scores) is highest, not the last step. "
        "For one of eval/, up to eval_prompts training prompts are kept from training, and evaluated on instead of "
        "the evaluation's",
    )
    keep_best_max_kl: float | None = Field(
        None, gt=0, description="with keep_best: only of steps whose objective/kl is at most this; null: of all"
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

    @model_validator(mode="after")
    def _consistent(self) -> PPOConfig:
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator k1 has almost no gradient in the loss: set k2, or kl_in: reward")
        if self.keep_best is not None and self.keep_best.startswith("eval/") and self.eval_every is None:
            raise ValueError(f"keep_best {self.keep_best} needs eval_every")
        if self.keep_best_max_kl is not None and self.keep_best is None:
            raise ValueError("keep_best_max_kl needs keep_best, the statistic to pick a step by, say ppo/mean_scores")
        if self.mini_batch_size and self.mini_batch_size > self.batch_size:
            raise ValueError(f"mini_batch_size ({self.mini_batch_size}) is more than batch_size ({self.batch_size})")
        return self
