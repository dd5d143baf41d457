"""Evaluation, gates, registration and compute; and the recipe as a whole."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rlhf_lib.recipe.critic import check_critic
from rlhf_lib.recipe.data import DataConfig, Positive, Section, SourceConfig
from rlhf_lib.recipe.judges import JudgeConfig, JudgeName, check_acting, check_judges, follow_label
from rlhf_lib.recipe.learning import GenerationConfig, PolicyConfig, PPOConfig
from rlhf_lib.recipe.reward import RewardConfig


class PerplexitySetConfig(SourceConfig):
    """Texts whose perplexity is measured under the reference and the policy, and that of the answers in them, given
    their prompts (as data.prompts.query cuts them)."""

    weighted: ClassVar[bool] = False

    split: str = Field("test", description="split, including slices such as test[:1000]")
    column: str = Field("chosen", description="column of the texts")
    prompt: str | None = Field(
        None,
        description="column of the prompt that each text answers: the text is scored given it. null: the whole text, "
        "or for a seq2seq policy what follows the query (cut as data.prompts.query says)",
    )
    add_start_token: bool = Field(
        True, description="score the first token too, after BOS (as Hugging Face's metric does)"
    )
    batch_size: Positive = Field(16, description="most texts in a forward pass; doesn't change results")
    limit: Positive | None = Field(None, description="most texts to score, drawn with the recipe's seed")


class TokenProbeConfig(Section):
    """Which of two words comes next: the difference of their logits, before and after PPO."""

    prompt: str = Field(description="the text before")
    token: str = Field(description="the word that may follow, with its leading space if the tokenizer has one there")
    against: str = Field(description="the other word")


class LmEvalConfig(Section):
    """Tasks of EleutherAI's lm-evaluation-harness (the extra lm-eval), by the reference and by the policy. A list of
    tasks stands for this section with that list."""

    tasks: list[str] = Field(min_length=1, description="their names, or groups of them, as lm-eval ls tasks lists them")
    num_fewshot: int | None = Field(
        None, ge=0, description="examples before each question; null: as the task says, or none"
    )
    limit: Positive | None = Field(None, description="most documents of a task (of each task of a group), its first")
    metrics: dict[str, str] = Field(
        {}, description="task -> metric; without one a task's first, among those that are a mean over its documents"
    )
    include_path: str | None = Field(None, description="folder with task files (YAML) of your own")
    batch_size: Positive = Field(16, description="texts in a forward pass")

    @model_validator(mode="after")
    def _consistent(self) -> LmEvalConfig:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("a task is listed twice in tasks: remove one")
        for name in self.metrics:
            if name not in self.tasks:
                raise ValueError(f"metrics.{name}: {name} is not among the tasks")
        return self


class EvaluationConfig(Section):
    """The policy after PPO against its reference: rewards, perplexity, diversity, samples."""

    prompts: Positive = Field(
        256,
        description="evaluation prompts, at most, each answered once; with data.prompts.held_out 0 each is answered as "
        "often as it fits in",
    )
    perplexity: PerplexitySetConfig | None = None
    metrics: list[str] = Field(
        [],
        description="functions of your own, package.module:name, called as trlX's metric_fn(samples, prompts, outputs, "
        "**kwargs) -> name -> values: in the report before and after PPO, and while it learns with ppo.eval_every",
    )
    judges: dict[JudgeName, JudgeConfig] = Field(
        {},
        description="rewards that PPO doesn't optimise, by name: what each gives before and after, beside the reward; "
        "the gate registration.gates.min_judge_delta holds for each, unless ppo.keep_best or ppo.stop_when goes by it. "
        "With ppo.eval_every they are asked while PPO learns, too, but for those of kind llm",
    )
    lm_eval: LmEvalConfig | None = None
    probes: list[TokenProbeConfig] = Field([], description="differences of next-token logits, shown in the report")
    best_of: int | None = Field(
        16,
        ge=0,
        le=256,
        description="a baseline without training: the reward of the best of n answers by the reference, n = 1, 2, 4, "
        "... up to this, from as many answers a prompt. null or 0: off",
    )
    sft_on_chosen: bool = Field(
        True,
        description="another baseline, where policy.train learns from chosen and rejected answers of pairs: the same "
        "model trained on as many answers, all of them chosen",
    )
    best_of_prompts: Positive = Field(64, description="evaluation prompts that best_of takes, at most")

    @field_validator("lm_eval", mode="before")
    @classmethod
    def _tasks_alone(cls, given: Any) -> Any:
        return {"tasks": given} if isinstance(given, list) else given


class GatesConfig(Section):
    """What a version needs to become champion; null switches a gate off."""

    min_prompts: Positive | None = Field(
        50, description="different prompts that it was evaluated on, and compared with the champion on"
    )
    min_reward_delta: float | None = Field(
        0.0,
        description="the 95% interval of the reward's gain must lie above this (below 20 prompts, which have no "
        "interval, the gain itself)",
    )
    min_judge_delta: float | None = Field(
        0.0, description="the same for the gain by each of evaluation.judges, beside the reward's"
    )
    max_perplexity_ratio: float | None = Field(
        2.0,
        gt=0,
        description="perplexity, policy to reference; of the answers alone where policy.train.completion_only is true",
    )
    max_kl: float | None = Field(
        20.0,
        gt=0,
        description="KL to the reference, nats per response; shipped recipes reach 2 to 8, one that collapsed 31",
    )
    min_distinct_2_ratio: float | None = Field(
        0.5, ge=0, description="share of bigrams that differ, policy to reference"
    )
    min_lm_eval_delta: float | None = Field(
        None,
        description="on each task of evaluation.lm_eval the 95% interval of policy less reference must lie above this, "
        "say -0.02 (of a metric where less is better: of reference less policy)",
    )
    allow_unheld: bool = Field(
        False,
        description="with data.prompts.held_out 0: true lets a version become champion by its training prompts alone",
    )


class RegistrationConfig(Section):
    """The version that each run adds to MLflow's registry."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="registered model; null: the recipe's name"
    )
    promote: bool = Field(True, description="false: a version that passes its gates stays challenger")
    gates: GatesConfig = GatesConfig()


class ComputeConfig(Section):
    """Where to compute, and in which precision."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    processes: Positive = Field(1, description="how many processes share PPO's batches, one per GPU")
    accelerate: str | None = Field(
        None, description="Accelerate's configuration file (FSDP2, DeepSpeed, nodes); null: DDP on this machine"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on devices that multiply it natively"
    )


class AboutConfig(Section):
    """What a run needs, for the list of recipes."""

    models: str = Field("", description="sizes of policy and reward model")
    hardware: str = Field("", description="the hardware that it needs")
    time: str = Field("", description="how long a whole run takes on it")


class Recipe(Section):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="letters, digits, and . _ - after the first; names the runs and the registered model",
    )
    description: str = Field("", description="one line for people: in lists, and with the registered model")
    about: AboutConfig = AboutConfig()
    data: DataConfig
    policy: PolicyConfig
    reward: RewardConfig = RewardConfig()
    generation: GenerationConfig = GenerationConfig()
    ppo: PPOConfig = PPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    registration: RegistrationConfig = RegistrationConfig()
    compute: ComputeConfig = ComputeConfig()
    seed: int = Field(0, ge=0, description="for every random draw: orders, new weights, sampling")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for name, size in (("batch_size", self.ppo.batch_size), ("mini_batch_size", self.ppo.mini_batch_size)):
            if size is not None and size % self.compute.processes:
                raise ValueError(f"ppo.{name} ({size}) must be a multiple of compute.processes")
        if self.data.prompts.dataset is None:
            raise ValueError("data.prompts.dataset is missing: a hub id or a local folder")
        if self.reward.learned() and self.data.preferences is None:
            kind = self.reward.kind
            what = "a preference term without model" if kind == "sum" else f"reward.kind {kind}"
            raise ValueError(f"{what} needs data.preferences to train on")
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
        check_critic(self.policy, self.reward)
        if self.registration.gates.min_lm_eval_delta is not None and self.evaluation.lm_eval is None:
            raise ValueError(
                "registration.gates.min_lm_eval_delta needs evaluation.lm_eval, the tasks to measure it on"
            )
        follow_label(self.evaluation.judges, self.reward)
        check_judges(self.evaluation.judges, self.reward, pairs=self.data.preferences is not None, labelled=labelled)
        check_acting(self.evaluation.judges, self.ppo)
        return self

    @property
    def learns_from(self) -> Literal["chosen", "both"] | None:
        """Which answers of the pairs `policy.train` learns from; None where it learns from no pairs."""
        train = self.policy.train
        return None if train is None or self.data.corpus or self.data.preferences is None else train.answers

    @property
    def judges_in_ppo(self) -> dict[str, JudgeConfig]:
        """The judges that PPO asks at every `ppo.eval_every`: all that score one answer alone, and so no language
        model."""
        judges = self.evaluation.judges if self.ppo.eval_every else {}
        return {name: judge for name, judge in judges.items() if judge.kind != "llm"}

    @property
    def trains_judges(self) -> bool:
        """Whether there is a stage judges: something is made here of one of them."""
        return any(judge.has_folder for judge in self.evaluation.judges.values())

    @property
    def trains_on_chosen(self) -> bool:
        """Whether there is a stage sft_on_chosen."""
        return self.evaluation.sft_on_chosen and self.learns_from == "both"

    @model_validator(mode="after")
    def _inherited(self) -> Recipe:
        """A source without a data set of its own uses that of the prompts, and the same part of it."""
        data, prompts = self.data, self.data.prompts
        sources: list[SourceConfig | None] = [prompts.test, self.evaluation.perplexity]
        for section in (data.preferences, data.corpus, data.labelled):
            sources += [section.train, section.test] if section is not None else []
        sources += [data.preferences.transfer] if data.preferences is not None else []
        for source in sources:
            if source is not None and source.dataset is None:
                source.data_dir = source.data_dir or prompts.data_dir
                source.name = source.name or prompts.name
        return self
