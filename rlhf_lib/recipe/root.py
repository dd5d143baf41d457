"""The recipe as a whole."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf_lib.recipe.data import Data, Source
from rlhf_lib.recipe.evaluation import Evaluation, Registration
from rlhf_lib.recipe.policy import Policy
from rlhf_lib.recipe.ppo import PPO, Generation
from rlhf_lib.recipe.reward import Reward
from rlhf_lib.recipe.section import Positive, Section


class Compute(Section):
    """Where it is computed, and how."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    processes: Positive = Field(1, description="PPO shares its batches between so many processes, one a GPU")
    accelerate: str | None = Field(
        None, description="configuration file of Hugging Face Accelerate (FSDP2, DeepSpeed, nodes); null: DDP here"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the device multiplies it natively"
    )


class About(Section):
    """What a run takes, for the list of recipes."""

    models: str = Field("", description="sizes of policy and reward model")
    hardware: str = Field("", description="what it needs")
    time: str = Field("", description="of a whole run on it")


class Recipe(Section):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="letters, digits, and . _ - after the first; names the runs and the registered model",
    )
    description: str = Field("", description="one line for people: in lists, and with the registered model")
    about: About = About()
    data: Data
    policy: Policy
    reward: Reward = Reward()
    generation: Generation = Generation()
    ppo: PPO = PPO()
    evaluation: Evaluation = Evaluation()
    registration: Registration = Registration()
    compute: Compute = Compute()
    seed: int = Field(0, ge=0, description="of every random draw: orders, new weights, sampling")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for name, size in (("batch_size", self.ppo.batch_size), ("mini_batch_size", self.ppo.mini_batch_size)):
            if size is not None and size % self.compute.processes:
                raise ValueError(f"ppo.{name} ({size}) must be a multiple of compute.processes")
        if self.data.prompts.dataset is None:
            raise ValueError("data.prompts.dataset is missing: a hub id or a local folder")
        if self.reward.kind == "preference" and self.data.preferences is None:
            raise ValueError("reward.kind preference needs data.preferences to train on")
        if self.policy.train is not None and self.data.preferences is None and self.data.corpus is None:
            raise ValueError("policy.train needs data.preferences or data.corpus to train on")
        scratch = self.policy.train.from_scratch if self.policy.train else None
        if scratch and scratch.architecture == "t5" and self.data.corpus is None:
            raise ValueError("policy.train.from_scratch.architecture t5 needs data.corpus to train on")
        labelled = self.data.labelled is not None
        if labelled and self.reward.kind != "classifier":
            raise ValueError("data.labelled trains a classifier: set reward.kind to classifier, or it to null")
        if self.reward.kind == "classifier" and self.reward.model is None:
            if not labelled:
                raise ValueError("reward: kind classifier needs model, or data.labelled to train one on")
            if self.reward.train.from_scratch is None:
                raise ValueError("reward: kind classifier needs model or train.from_scratch to start from")
        if self.reward.train.from_scratch is not None and not labelled:
            raise ValueError("reward.train.from_scratch needs data.labelled to train on")
        return self

    @model_validator(mode="after")
    def _inherited(self) -> Recipe:
        """A source without a data set of its own is in the prompts' set, and there in the prompts' part of it."""
        data, prompts = self.data, self.data.prompts
        sources: list[Source | None] = [prompts.test, self.evaluation.perplexity]
        for section in (data.preferences, data.corpus, data.labelled):
            sources += [section.train, section.test] if section is not None else []
        for source in sources:
            if source is not None and source.dataset is None:
                source.data_dir = source.data_dir or prompts.data_dir
                source.name = source.name or prompts.name
        return self
