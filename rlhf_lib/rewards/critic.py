"""The reward model as PPO's value function (`policy.critic: reward`): whether it can be, and how it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_lib.errors import ModelError
from rlhf_lib.models.critic import FIX, Critic, check_family, critic_from_classifier
from rlhf_lib.models.loading import load_classifier, load_config, load_tokenizer
from rlhf_lib.rewards.classifier import label_column

if TYPE_CHECKING:
    from rlhf_lib.recipe import Recipe


def load_critic(recipe: Recipe, reward: str | None, policy: str, constants: tuple[float, float] | None) -> Critic:
    """The critic that starts from the reward model. `reward`, `policy`: hub ids or folders, of a reward model trained
    here (None: `reward.model`) and of the starting policy; `constants`: mean and std of the scores that PPO normalises.

    Raises ModelError where the reward model can't be the policy's critic.
    """
    section = recipe.reward
    name = reward or section.model
    if name is None:
        raise ModelError(f"policy.critic reward: there is no reward model to start from: {FIX}")
    _check(policy, recipe.policy.trust_remote_code, name, section.trust_remote_code)
    classifier = load_classifier(name, trust_remote_code=section.trust_remote_code)
    column = label_column(classifier.config, None if section.kind == "preference" else section.label)
    mean, std = constants or (0.0, 1.0)
    return critic_from_classifier(classifier, column, mean=mean, std=std)


def check_critic(recipe: Recipe) -> None:
    """Raise ModelError for a `policy.critic: reward` that the models' configurations and tokenizers rule out."""
    policy, reward = recipe.policy, recipe.reward
    if policy.critic != "reward" or policy.model is None:
        return  # a policy made from scratch is what the reward model starts from
    if reward.model is not None:
        _check(policy.model, policy.trust_remote_code, reward.model, reward.trust_remote_code)
    else:
        config = load_config(policy.model, policy.trust_remote_code)
        check_family(config, config)


def _check(policy: str, trust_policy: bool, reward: str, trust_reward: bool) -> None:
    check_family(load_config(policy, trust_policy), load_config(reward, trust_reward))
    ours = load_tokenizer(policy, trust_policy).get_vocab()
    theirs = load_tokenizer(reward, trust_reward, need_eos=False).get_vocab()
    # the reward model's may have a pad token more
    if not ours.items() <= theirs.items():
        differs = next(token for token, number in ours.items() if theirs.get(token) != number)
        raise ModelError(
            f"policy.critic reward needs a reward model with the policy's tokenizer, and theirs differ (say in "
            f"{differs!r}): train the reward model from the policy's base model (reward.model: null), or {FIX}"
        )
