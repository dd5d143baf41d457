"""The section evaluation.judges: rewards that PPO doesn't optimise, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from rlhf_lib.recipe.reward import RewardConfig

REWARDS_LABEL = "reward.label"  # instead of a label
JudgeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class JudgeConfig(RewardConfig):
    """A reward that PPO doesn't optimise, asked for its own opinion of the policy. The keys are those of `reward`;
    normalize is ignored, and so are the checks, except checks.pairs."""

    label: str | None = Field(
        None,
        description=f"the classifier's label; {REWARDS_LABEL}: the one that the reward is for; null only where it has "
        "one output",
    )
    pairs: Literal["held_out"] | None = Field(
        None,
        description="kind preference: held_out trains it here, on pairs that the reward model never sees, split off by "
        "prompt; null: an existing model",
    )
    share: float = Field(0.5, gt=0, lt=1, description="of the training pairs' prompts, with pairs: held_out")
    gate: bool = Field(
        True,
        description="false: it only reports. Where there are test pairs, so does a judge whose accuracy on them isn't "
        "surely above one half, and always one that is a term of the reward's sum",
    )

    @model_validator(mode="after")
    def _has_a_model(self) -> JudgeConfig:
        if self.pairs is not None and self.kind != "preference":
            raise ValueError(f"pairs: held_out is for kind preference, not {self.kind}")
        if self.kind == "preference" and self.model is None and self.pairs is None:
            raise ValueError("kind preference needs model, or pairs: held_out to train one here")
        if self.kind == "classifier" and self.model is None:
            raise ValueError("kind classifier needs model")
        return self


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


def held_out_shares(judges: Judges) -> dict[str, float]:
    """The share of the training pairs' prompts that each judge trained here takes, by name."""
    return {name: judge.share for name, judge in judges.items() if judge.pairs is not None}


def is_rewarded(judge: JudgeConfig, reward: RewardConfig) -> bool:
    """Whether PPO optimises a part of the judge: a term of the reward's sum."""
    return reward.kind == "sum" and bool(_parts(judge, held_out="judge") & _parts(reward))


def _parts(reward: RewardConfig, *, trained: bool = False, held_out: str | None = None) -> set[tuple[str, str | None]]:
    """What the scores come from. `trained`: a classifier that is trained here; `held_out`: the judge's name."""
    if reward.terms:
        return {part for term in reward.terms for part in _parts(term.reward, held_out="")}
    if reward.kind == "function":
        return {("function", reward.function)}
    if isinstance(reward, JudgeConfig) and reward.pairs is not None:
        return {("held out", held_out)}
    if trained or (reward.kind == "preference" and held_out is None):
        return {("trained here", None)}
    return {("likelihood" if reward.kind == "likelihood" else "model", reward.model)}
