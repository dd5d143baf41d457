"""Whether the reward can be the policy's critic, as far as a recipe tells."""

from __future__ import annotations

from rlhf_lib.recipe.learning import PolicyConfig
from rlhf_lib.recipe.reward import RewardConfig

FIX = "set policy.critic to separate"


def check_critic(policy: PolicyConfig, reward: RewardConfig) -> None:
    """Raises ValueError for a `policy.critic: reward` that the reward's kind, or how either is made, rules out."""
    if policy.critic != "reward":
        return
    if reward.kind not in ("preference", "classifier"):
        raise ValueError(
            "policy.critic reward starts from a reward model, of reward.kind preference or classifier, and this is "
            f"{reward.kind}: {FIX}"
        )
    if reward.output != "logit":
        raise ValueError(
            f"policy.critic reward: a value head is linear, and so can't start from a {reward.output}: set "
            f"reward.output to logit, or {FIX}"
        )
    if reward.train.from_scratch is not None:
        raise ValueError(
            f"policy.critic reward needs a reward model of the policy's family, and reward.train.from_scratch makes a "
            f"RoBERTa: {FIX}"
        )
    scratch = policy.train.from_scratch if policy.train else None
    if scratch is not None and scratch.architecture == "t5":
        raise ValueError(
            f"policy.critic reward is for causal policies, and policy.train.from_scratch makes a T5: {FIX}"
        )
    if scratch is not None and reward.model is not None:
        raise ValueError(
            f"policy.critic reward needs a reward model with the policy's tokenizer, and policy.train.from_scratch "
            f"makes a new one: set reward.model to null, which trains it from the same model, or {FIX}"
        )
