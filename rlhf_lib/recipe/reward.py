"""What scores a response, how it is trained, and the checks it must pass."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf_lib.recipe.section import Fraction, Positive, Section


class ClassifierFromScratch(Section):
    """A small RoBERTa with a byte-level BPE tokenizer of its own, both made from the labelled texts."""

    layers: Positive = Field(2, description="transformer blocks")
    width: Positive = Field(192, description="of the hidden states; a multiple of heads")
    heads: Positive = Field(4, description="attention heads")
    positions: Positive = Field(128, description="tokens of a text that it can take")
    vocab_size: Positive = Field(8192, description="tokens of the tokenizer")
    dropout: Fraction = Field(0.1, description="while it is trained; scores are taken without")

    @model_validator(mode="after")
    def _divisible(self) -> ClassifierFromScratch:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class RewardTraining(Section):
    """kind preference: TRL's RewardTrainer on the pairs (Bradley-Terry, pairwise logistic loss); kind classifier with
    data.labelled: cross-entropy, each label apart where texts have several."""

    from_scratch: ClassifierFromScratch | None = Field(None, description="kind classifier: instead of reward.model")
    epochs: float = Field(1.0, gt=0, description="passes over the pairs or texts; fractions are fine")
    max_steps: Positive | None = Field(None, description="optimizer steps, instead of epochs")
    batch_size: Positive = Field(32, description="pairs or texts per optimizer step")
    learning_rate: float = Field(1e-4, gt=0, description="AdamW's highest, after 5% warm-up, then falling to 0")
    max_length: Positive | None = Field(
        None, description="tokens of a dialogue, cut from the left; null: all positions"
    )
    center_coefficient: float | None = Field(
        None, ge=0, description="weight of the squared sum of a pair's scores, which keeps them centred (0.01 is usual)"
    )


class Probe(Section):
    """A sentence pair whose order is known: the reward model must prefer `better`."""

    query: str = Field("", description="what both answer")
    better: str = Field(description="the response that must score higher")
    worse: str = Field(description="the other")


class Checks(Section):
    """Thresholds of the reward model's sanity gates; null switches a gate off, its figure is reported all the same."""

    pairs: Positive = Field(1000, description="held-out pairs used, at most")
    min_accuracy: Fraction | None = Field(0.6, description="pairwise accuracy on held-out pairs (needs preferences)")
    probes: list[Probe] = Field([], description="sentence pairs whose order is known")
    min_probe_accuracy: Fraction | None = Field(1.0, description="share of the probes in their order")
    max_calibration_error: Fraction | None = Field(
        0.15, description="expected calibration error of sigmoid(score difference); trained preference models only"
    )
    min_score_std: float | None = Field(1e-4, description="scores must differ between texts")
    max_length_correlation: Fraction | None = Field(0.6, description="absolute rank correlation of score and length")
    max_degenerate_win_rate: Fraction | None = Field(
        0.65,  # a model that reads words but not their order is at 0.5 on shuffled text, give or take 0.035
        description="how often empty, repeated-word or word-shuffled responses may beat a real one",
    )
    max_batch_difference: float | None = Field(1e-3, description="batched against single scoring, in score units")


class Reward(Section):
    """(queries, responses) in, one number each out. It sees text, never tokens."""

    kind: Literal["classifier", "preference", "pair", "likelihood", "function", "sum"] = Field(
        "preference",
        description="classifier: an existing one, or trained here on data.labelled, on query+response; preference: "
        "trained here on the pairs; pair: an "
        "existing one that encodes (query, response) as a pair; likelihood: mean log-probability of the text under a "
        "language model; function: your own, by import path; sum: a weighted sum of such",
    )
    model: str | None = Field(
        None,
        description="hub id or folder; for preference, and classifier with data.labelled, what to start from (null: "
        "the base model, train.from_scratch)",
    )
    label: str | None = Field(None, description="the classifier's label to reward; null only where it has one output")
    output: Literal["logit", "probability", "softmax"] = Field(
        "logit",
        description="probability: sigmoid where the classifier's labels don't exclude each other, else softmax; "
        "softmax: over all labels in any case",
    )
    function: str | None = Field(None, description="package.module:name of f(queries, responses) -> scores")
    terms: list[Term] | None = Field(None, description="sum: each {weight, reward}; a preference term names its model")
    batch_size: Positive = Field(64, description="texts scored together; changes no figure")
    max_length: Positive | None = Field(None, description="tokens the reward model sees, cut from the left")
    normalize: bool = Field(
        False, description="scale scores for PPO to mean 0, std 1 on the reference policy's samples"
    )
    train: RewardTraining = RewardTraining()
    checks: Checks = Checks()
    trust_remote_code: bool = Field(False, description="run the Python code that comes with the model")

    @model_validator(mode="after")
    def _complete(self) -> Reward:
        if self.kind in ("pair", "likelihood") and self.model is None:
            raise ValueError(f"kind {self.kind} needs model")
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


class Term(Section):
    """One reward of a sum."""

    weight: float = Field(1.0, description="its score is multiplied by this; negative: a penalty")
    reward: Reward = Field(description="a section as `reward`, of any kind; its checks and training are not used")


Reward.model_rebuild()
