"""The language model that PPO trains, and what of it learns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf_lib.recipe.section import Fraction, Positive, Section


class FromScratch(Section):
    """A small model with a byte-level BPE tokenizer of its own, both made from the training text."""

    architecture: Literal["gpt2", "t5"] = "gpt2"
    layers: Positive = 4
    width: Positive = 256
    heads: Positive = 4
    positions: Positive = 256
    vocab_size: Positive = 4096

    @model_validator(mode="after")
    def _divisible(self) -> FromScratch:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class Train(Section):
    """Supervised training of the base model on data.corpus or the preference pairs' texts, before anything else."""

    from_scratch: FromScratch | None = Field(None, description="null: fine-tune policy.model")
    answers: Literal["chosen", "both"] = Field("chosen", description="which answers of the pairs to train on")
    completion_only: bool = Field(False, description="loss on the answer alone rather than on the whole dialogue")
    epochs: float = Field(1.0, gt=0)
    max_steps: Positive | None = None
    batch_size: Positive = 16
    learning_rate: float = Field(5e-4, gt=0)
    max_length: Positive | None = Field(None, description="tokens of a training text; null: the model's positions")


class Lora(Section):
    r: Positive = 32
    alpha: Positive = 32
    dropout: Fraction = Field(0.0, description="used in SFT only: no dropout in the passes that form PPO's ratio")
    target_modules: list[str] | None = Field(None, description="null: peft's choice for the architecture")
    dora: bool = False


class Policy(Section):
    model: str | None = Field(None, description="hub id, local folder or registry URI such as models:/NAME@champion")
    train: Train | None = Field(None, description="how to train the base model first")
    lora: Lora | None = None
    unfrozen_layers: int | None = Field(
        None,
        description="only the top N blocks learn, or with -N all but the bottom N; what is frozen, a seq2seq model's "
        "encoder and tied embeddings included, runs once a batch",
    )
    critic: Literal["shared", "separate"] = Field(
        "shared", description="the value head's trunk: the policy's, or a copy"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, for a second forward pass in each update")
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _some_model(self) -> Policy:
        scratch = self.train is not None and self.train.from_scratch is not None
        if self.model is None and not scratch:
            raise ValueError("needs model, or train.from_scratch")
        if self.model is not None and scratch:
            raise ValueError("model and train.from_scratch exclude each other: set one of them to null")
        if self.unfrozen_layers == 0:
            raise ValueError("unfrozen_layers 0 would leave nothing to learn: set null for all, or a number of blocks")
        if self.lora is not None and self.unfrozen_layers is not None:
            raise ValueError("lora and unfrozen_layers exclude each other: set one of them to null")
        return self
