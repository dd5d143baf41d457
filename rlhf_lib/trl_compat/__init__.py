"""TRL 0.11's PPO interface over this engine: in a program written for it, `trl` becomes `rlhf_lib.trl_compat`.

    from rlhf_lib.trl_compat import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

docs/moving-from-trl.md says what is the same and what differs.
"""

from rlhf_lib.trl_compat.config import PPOConfig
from rlhf_lib.trl_compat.core import LengthSampler, set_seed
from rlhf_lib.trl_compat.models import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PreTrainedModelWrapper,
    create_reference_model,
)
from rlhf_lib.trl_compat.trainer import PPOTrainer

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "LengthSampler",
    "PPOConfig",
    "PPOTrainer",
    "PreTrainedModelWrapper",
    "create_reference_model",
    "set_seed",
]
