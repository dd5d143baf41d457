"""What predicts values: a linear head on hidden states, and the trunk of its own that it may have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf_lib.errors import ModelError
from rlhf_lib.models.loading import positions

FIX = "set policy.critic to separate"


class ValueHead(nn.Module):
    """A linear map from the last hidden state to a scalar, starting at 0 (Ziegler et al. 2019). The parameter names are
    TRL's, so that its checkpoints load."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.summary = nn.Linear(width, 1)
        nn.init.zeros_(self.summary.weight)
        nn.init.zeros_(self.summary.bias)

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) -> (...) in fp32."""
        with torch.autocast(states.device.type, enabled=False):
            return self.summary(states.float())[..., 0]


@dataclass(frozen=True)
class Critic:
    """A value function apart from the policy: a model without a head, and the value head on its last hidden states."""

    trunk: PreTrainedModel
    head: ValueHead


def critic_from_classifier(
    classifier: PreTrainedModel, column: int = 0, *, mean: float = 0.0, std: float = 1.0
) -> Critic:
    """The value function that starts as a reward model (Stiennon et al. 2020; Ouyang et al. 2022, appendix C.4; Huang
    et al. 2024, "The N+ Implementation Details of RLHF with PPO"): its trunk, and as value head one output of its score
    head, read at every token instead of the last.

    PPO sees (score - mean) / std, so the head becomes w / std and (b - mean) / std: its value at a text's last token is
    the score that PPO gets for the text. The trunk is the classifier's own, not a copy.

    Raises ModelError where the classifier has no score head for each token: decoders have, encoders don't.
    """
    score = getattr(classifier, "score", None)
    if not isinstance(score, nn.Linear):
        raise ModelError(
            f"policy.critic reward: {type(classifier).__name__} doesn't score its text token by token, as a classifier "
            f"made of a causal language model does: {FIX}"
        )
    head = ValueHead(score.in_features)
    with torch.no_grad():
        head.summary.weight.copy_(score.weight[column : column + 1] / std)
        bias = 0.0 if score.bias is None else float(score.bias[column])
        head.summary.bias.fill_((bias - mean) / std)
    trunk = classifier.base_model
    assert isinstance(trunk, PreTrainedModel), "a classifier of Transformers is made of a model and its head"
    return Critic(trunk, head)


def check_family(policy: PreTrainedConfig, critic: PreTrainedConfig) -> None:
    """The critic reads the policy's tokens, packed as the policy's architecture reads them, and whole: queries and
    responses of any length that the policy takes. Raises ModelError where it can't."""
    if policy.is_encoder_decoder:
        raise ModelError(f"policy.critic reward is for causal policies, and this one is seq2seq: {FIX}")
    if policy.model_type != critic.model_type:
        raise ModelError(
            f"policy.critic reward needs a reward model of the policy's family: that is {critic.model_type}, and the "
            f"policy {policy.model_type}. Train the reward model from the policy's base model (reward.model: null), or "
            f"{FIX}"
        )
    if positions(critic) < positions(policy):
        raise ModelError(
            f"policy.critic reward: the reward model takes {positions(critic)} tokens and the policy "
            f"{positions(policy)}, so there are texts that the critic couldn't read: {FIX}"
        )
