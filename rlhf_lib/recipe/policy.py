"""The language model that PPO trains, and what of it learns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf_lib.recipe.section import Fraction, Positive, Section


class FromScratch(Section):
    """A small model with a byte-level BPE tokenizer of its own, both made from the training text."""

    architecture: Literal["gpt2", "t5"] = Field(
        "gpt2", description="gpt2: causal; t5: encoder and decoder, trained on data.corpus"
    )
    layers: Positive = Field(4, description="transformer blocks; t5: of encoder and decoder each")
    width: Positive = Field(256, description="of the hidden states; a multiple of heads")
    heads: Positive = Field(4, description="attention heads")
    positions: Positive = Field(256, description="tokens that it can take, prompt and response together")
    vocab_size: Positive = Field(4096, description="tokens of the tokenizer, 256 bytes, EOS and pad included")

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
    epochs: float = Field(1.0, gt=0, description="passes over the texts; fractions are fine")
    max_steps: Positive | None = Field(None, description="optimizer steps, instead of epochs")
    batch_size: Positive = Field(16, description="texts per optimizer step")
    learning_rate: float = Field(
        5e-4, gt=0, description="AdamW's highest, after 5% warm-up, then falling along a cosine"
    )
    max_length: Positive | None = Field(None, description="tokens of a training text; null: the model's positions")


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021, with peft), for policy.train and PPO both; merged into what is registered."""

    r: Positive = Field(32, description="rank")
    alpha: Positive = Field(32, description="the adapter is scaled by alpha / r")
    dropout: Fraction = Field(0.0, description="used in SFT only: no dropout in the passes that form PPO's ratio")
    target_modules: list[str] | None = Field(
        None, description="layers that get one, by the end of their names; null: peft's choice for the architecture"
    )
    dora: bool = Field(False, description="magnitude and direction apart (Liu et al. 2024)")


class Policy(Section):
    """The language model; its start is also the reference that KL is measured to."""

    model: str | None = Field(None, description="hub id, local folder or registry URI such as models:/NAME@champion")
    train: Train | None = Field(None, description="how to train the base model first")
    lora: Lora | None = None
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
