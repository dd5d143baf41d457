"""The section evaluation.judges: rewards that PPO doesn't optimise, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from rlhf_lib.recipe.learning import PPOConfig
from rlhf_lib.recipe.llm_judge import LLMJudgeConfig
from rlhf_lib.recipe.reward import RewardConfig

REWARDS_LABEL = "reward.label"  # instead of a label
JudgeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class JudgeConfig(RewardConfig):
    """A reward that PPO doesn't optimise, asked for its own opinion of the policy. The keys are those of `reward`;
    normalize is ignored, and so are the checks, except checks.pairs."""

    kind: Literal["classifier", "preference", "pair", "likelihood", "function", "sum", "ensemble", "llm"] = Field(  # type: ignore[assignment]
        "preference",
        description="as of reward, or llm: a language model behind an OpenAI-compatible endpoint, named by model, "
        "compares two answers at a time",
    )
    llm: LLMJudgeConfig | None = None
    label: str | None = Field(
        None,
        description=f"the classifier's label; {REWARDS_LABEL}: the one that the reward is for; null only where it has "
        "one output",
    )
    pairs: Literal["held_out"] | None = Field(
        None,
        description="kinds preference and ensemble: held_out trains it here, on pairs that the reward model never "
        "sees, split off by prompt; null: an existing model",
    )
    share: float = Field(0.5, gt=0, lt=1, description="of the training pairs' prompts, with pairs: held_out")
    gate: bool = Field(
        True,
        description="false: it only reports. Where there are test pairs, so does a judge whose accuracy on them isn't "
        "surely above one half, and above that of the rule 'the longer answer wins'; and always one that is a term of "
        "the reward's sum",
    )

    @model_validator(mode="after")
    def _has_a_model(self) -> JudgeConfig:
        if self.pairs is not None and (self.kind not in ("preference", "ensemble") or self.models):
            has = f"{self.kind} with models" if self.models else self.kind
            raise ValueError(f"pairs: held_out is for kind preference, and ensemble without models, not {has}")
        if self.kind in ("preference", "ensemble") and self.pairs is None:
            if self.kind == "preference" and self.model is None:
                raise ValueError("kind preference needs model, or pairs: held_out to train one here")
            if self.kind == "ensemble" and not self.models:
                raise ValueError("kind ensemble needs models, or pairs: held_out to train them here")
        if self.kind in ("classifier", "llm") and self.model is None:
            raise ValueError(f"kind {self.kind} needs model")
        if self.kind == "sum" and self.has_folder:
            raise ValueError(
                "a judge's sum has existing models alone: name each one's model, normalize none, leave ensembles out"
            )
        if self.llm is not None and self.kind != "llm":
            raise ValueError(f"the section llm is for kind llm, not {self.kind}")
        return self

    @property
    def endpoint(self) -> LLMJudgeConfig:
        """How a judge of kind llm is asked."""
        return self.llm or LLMJudgeConfig()

    def learned(self) -> dict[str, RewardConfig]:
        """As of any reward; an existing model is one that was trained before."""
        return {} if self.pairs is None and self.kind != "sum" else super().learned()


Judges = Mapping[str, JudgeConfig]


def follow_label(judges: Judges, reward: RewardConfig) -> None:
    """Give judges with `label: reward.label` that label. Raises ValueError where the reward has none."""
    for name, judge in judges.items():
        if judge.label == REWARDS_LABEL:
            if reward.label is None:
                raise ValueError(
                    f"evaluation.judges.{name}.label is {REWARDS_LABEL}, which is null: name the label itself"
                )
            judge.label = reward.label


def check_judges(judges: Judges, reward: RewardConfig, *, pairs: bool, labelled: bool) -> None:
    """`pairs`, `labelled`: whether the recipe has them. Raises ValueError for a judge that is the reward itself, or
    that lacks what it is trained on."""
    own = _parts(reward, trained=labelled)
    for name, judge in judges.items():
        if own <= _parts(judge, held_out=name):
            raise ValueError(
                f"evaluation.judges.{name} is the reward itself, and so no judge: set another kind, model or function, "
                "or pairs: held_out"
            )
        if judge.pairs is not None and not pairs:
            raise ValueError(f"evaluation.judges.{name}: pairs: held_out needs data.preferences to train on")
    if sum(held_out_shares(judges).values()) >= 1:
        raise ValueError(
            "the judges' shares leave no pairs to train the reward model on: lower evaluation.judges.*.share"
        )


def check_acting(judges: Judges, ppo: PPOConfig) -> None:
    """Raises ValueError where PPO is to act on a judge that there isn't, or that has no score for it."""
    for name, does in ppo.acting_judges.items():
        key = "ppo.keep_best" if "keep_best" in does else "ppo.stop_when.judge"
        if name not in judges:
            there = f"they are {', '.join(judges)}" if judges else "there are none"
            raise ValueError(f"{key}: {name} is none of evaluation.judges ({there}): name one, or add it there")
        if judges[name].kind == "llm":
            raise ValueError(
                f"{key}: {name} is of kind llm, which compares two answers and scores none, so PPO can't follow it: "
                "name a judge of another kind"
            )


def held_out_shares(judges: Judges) -> dict[str, float]:
    """The share of the training pairs' prompts that each judge trained here takes, by name."""
    return {name: judge.share for name, judge in judges.items() if judge.pairs is not None}


def is_rewarded(judge: JudgeConfig, reward: RewardConfig) -> bool:
    """Whether PPO optimises a part of the judge: a term of the reward's sum, or a member of its ensemble."""
    return bool(reward.parts) and bool(_parts(judge, held_out="judge") & _parts(reward))


def _parts(reward: RewardConfig, *, trained: bool = False, held_out: str | None = None) -> set[tuple[str, str | None]]:
    """What the scores come from. `trained`: a classifier that is trained here; `held_out`: the judge's name."""
    if isinstance(reward, JudgeConfig) and reward.kind == "llm":
        return {("llm", reward.model)}
    if isinstance(reward, JudgeConfig) and reward.pairs is not None:
        return {("held out", held_out)}
    if reward.parts:
        return {source for path, part in reward.parts.items() for source in _term(part, path in reward.learned())}
    if reward.kind == "function":
        return {("function", reward.function)}
    if trained or (reward.kind == "preference" and held_out is None):
        return {("trained here", None)}
    return {("likelihood" if reward.kind == "likelihood" else "model", reward.model)}


def _term(part: RewardConfig, learned: bool) -> set[tuple[str, str | None]]:
    return {("trained here", None)} if learned else _parts(part, held_out="")
