"""The section reward: which one, what it is trained on, and the checks that it has to pass."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlhf_lib.recipe.data import Fraction, Positive, Section


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
    length_debias: Literal["balanced", "regressed"] | None = Field(
        None,
        description="kinds preference and ensemble, against preferring longer answers as such: balanced: pairs whose "
        "chosen answer is longer and those where it is shorter weigh equally; regressed: what length alone explains is "
        "fitted first, and the scores learn the rest; null: neither",
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


class IsolateConfig(Section):
    """How a reward function runs in a process of its own, each answer a call."""

    seconds: float = Field(10.0, gt=0, description="time that it may take for an answer")
    memory_mb: Positive = Field(
        2048, description="memory (address space) that it may take beside what importing it does; each process has it"
    )
    timeout_score: float = Field(
        0.0, description="score of an answer for which it takes more than that, or at which its process dies"
    )
    network: bool = Field(
        False, description="true: it may use the network, and needs no Linux that lets it have namespaces of its own"
    )


class RewardConfig(Section):
    """The reward: prompts and answers in, one number per answer out. Models see text, never tokens."""

    kind: Literal["classifier", "preference", "pair", "likelihood", "function", "sum", "ensemble"] = Field(
        "preference",
        description="classifier: scores query + response; an existing one, or trained here on data.labelled; "
        "preference: trained here on the pairs; pair: an existing model that encodes (query, response) as a pair; "
        "likelihood: mean log-probability of the text under a language model; function: your own, by import path; sum: "
        "a weighted sum of these; ensemble: several preference models, trained here on the same pairs or existing ones",
    )
    model: str | None = Field(
        None,
        description="hub id or folder; what training starts from for preference and ensemble (null: the base model) "
        "and for classifier with data.labelled (null: train.from_scratch)",
    )
    label: str | None = Field(None, description="the classifier's label to reward; null only where it has one output")
    output: Literal["logit", "probability", "softmax"] = Field(
        "logit",
        description="probability: sigmoid for a classifier whose labels don't exclude each other, else softmax; "
        "softmax: always over all labels",
    )
    function: str | None = Field(
        None,
        description="package.module:name of f(prompts, completions, **columns) -> scores, as TRL's GRPO has it, or of "
        "f(queries, responses)",
    )
    isolate: IsolateConfig | None = Field(
        None,
        description="kind function: it runs in a process of its own, without network and secrets, with limits of time "
        "and memory for each answer; true: as below; null: in the run's own process",
    )
    terms: list[TermConfig] | None = Field(
        None,
        description="sum: each {weight, reward}; a preference term without model, one at most, is trained here on the "
        "pairs",
    )
    members: int = Field(
        3, ge=2, description="ensemble: preference models that are trained here, each with a seed of its own"
    )
    models: list[str] | None = Field(
        None, description="ensemble: hub ids or folders of existing preference models, instead of members"
    )
    combine: Literal["mean", "worst", "uncertainty"] = Field(
        "mean",
        description="ensemble: its score from the members', each scaled to mean 0, std 1 on the reference policy's "
        "samples; worst: the lowest; uncertainty: the mean less uncertainty_weight times the variance over members",
    )
    uncertainty_weight: float = Field(0.5, ge=0, description="combine uncertainty: of the members' variance")
    batch_size: Positive = Field(64, description="texts scored together; doesn't change results")
    max_length: Positive | None = Field(
        None, description="tokens that the reward model sees; longer texts are cut on the left"
    )
    normalize: bool = Field(
        False,
        description="scale scores for PPO to mean 0, std 1 on the reference policy's samples; those of a sum's term, "
        "before they are weighed",
    )
    train: RewardTrainingConfig = RewardTrainingConfig()
    checks: ChecksConfig = ChecksConfig()
    trust_remote_code: bool = Field(False, description="run the Python code that comes with the model")

    @field_validator("isolate", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _complete(self) -> RewardConfig:
        if self.kind in ("pair", "likelihood") and self.model is None:
            raise ValueError(f"kind {self.kind} needs model")
        if self.train.validation and self.kind not in ("preference", "ensemble"):
            raise ValueError("train.validation is for kinds preference and ensemble")
        if self.train.length_debias is not None and self.kind not in ("preference", "ensemble"):
            raise ValueError("train.length_debias is for kinds preference and ensemble: set it to null")
        if self.train.from_scratch is not None and (self.kind != "classifier" or self.model is not None):
            raise ValueError("train.from_scratch is for kind classifier without model")
        if any(term.reward.kind == "classifier" and term.reward.model is None for term in self.terms or []):
            raise ValueError("a classifier in a sum needs model")
        if (self.kind == "sum") != bool(self.terms):
            raise ValueError(
                "kind sum needs terms, a list of {weight, reward}, and no other kind has them: for another kind than "
                "the recipe's sum, set reward.terms to null too"
            )
        if self.models is not None and (self.kind != "ensemble" or len(self.models) < 2 or self.model is not None):
            raise ValueError(
                "models is for kind ensemble without model: at least two existing preference models. To train its "
                "members here, leave models out; model then says what they start from"
            )
        if self.kind == "sum" and len({id(section) for section in self.learned().values()}) > 1:
            raise ValueError(
                "a sum trains one preference term at most, as all would learn the same pairs: give the "
                "others a model, or use kind ensemble"
            )
        if self.isolate is not None and self.kind != "function":
            raise ValueError(
                f"isolate is for kind function, not {self.kind}: set it to null; a sum's terms have their own"
            )
        if self.kind == "function" and not self.function:
            raise ValueError("kind function needs function: package.module:name")
        return self

    @property
    def parts(self) -> dict[str, RewardConfig]:
        """A sum's terms or an ensemble's members, by the folder that each has in the folder of the reward's model."""
        if self.kind == "ensemble":
            models: list[str | None] = [*self.models] if self.models else [None] * self.members
            return {f"member_{k}": self.preference(model) for k, model in enumerate(models)}
        return {f"term_{i}": term.reward for i, term in enumerate(self.terms or [])}

    def preference(self, model: str | None) -> RewardConfig:
        """The section of one preference model like the members of this ensemble."""
        shared = {name: getattr(self, name) for name in ("batch_size", "max_length", "train", "trust_remote_code")}
        return RewardConfig(kind="preference", model=model, **shared)

    def learned(self) -> dict[str, RewardConfig]:
        """The sections of the models that a run trains on pairs, by their path in the folder of the reward's model; ""
        is that folder itself. A preference model is one, as a term only where it names no model, and so are the members
        of an ensemble without models."""
        if self.kind == "preference":
            return {"": self}
        if self.kind == "ensemble":
            return {} if self.models else dict.fromkeys(self.parts, self)
        found: dict[str, RewardConfig] = {}
        for name, part in self.parts.items():
            inner = {} if part.kind == "preference" and part.model is not None else part.learned()
            found |= {f"{name}/{path}".rstrip("/"): section for path, section in inner.items()}
        return found

    def scaled(self) -> dict[str, RewardConfig]:
        """The parts whose scores are scaled before they are combined, by path, the innermost first."""
        found: dict[str, RewardConfig] = {}
        for name, part in self.parts.items():
            found |= {f"{name}/{path}": section for path, section in part.scaled().items()}
            if part.normalize or self.kind == "ensemble":
                found[name] = part
        return found

    @property
    def has_folder(self) -> bool:
        """Whether a run makes something of the reward's own on the pairs or samples: weights, or constants of scale."""
        return bool(self.learned() or self.scaled())


class TermConfig(Section):
    """One reward of a sum."""

    weight: float = Field(1.0, description="its score is multiplied by this; negative: a penalty")
    reward: RewardConfig = Field(
        description="a section like `reward`, of any kind; its checks are ignored, and its training too where it names "
        "its model"
    )


RewardConfig.model_rebuild()
