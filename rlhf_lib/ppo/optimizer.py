"""The optimizers that PPO learns with, and their learning rate."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lib.errors import RecipeError

if TYPE_CHECKING:
    from rlhf_lib.models.policy import Policy
    from rlhf_lib.recipe import PPOConfig


def build_optimizer(policy: Policy, config: PPOConfig) -> torch.optim.Optimizer:
    """AdamW, or bitsandbytes' with moments of 8 bits (paged: moved to the host where a GPU's memory runs short), over
    what learns in the policy. With `value_learning_rate` the value head, and a critic of its own, are a second group.

    Raises RecipeError where bitsandbytes is wanted and not installed.
    """
    check_optimizer(config)
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    parameters: list[Any] = policy.trainable()
    if (rate := config.value_learning_rate) is not None:
        values = policy.of_values()
        others = {id(parameter) for parameter in values}
        parameters = [
            {"params": [parameter for parameter in parameters if id(parameter) not in others]},
            {"params": values, "lr": rate},
        ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **settings)
    import bitsandbytes

    kind = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}[config.optimizer]
    return getattr(bitsandbytes.optim, kind)(parameters, **settings)


def build_scheduler(optimizer: torch.optim.Optimizer, config: PPOConfig) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over `config.steps` steps. Unlike Transformers' schedules, warm-up doesn't begin at 0: a step's
    responses are costly, and none are thrown away. The value function's own warm-up comes before, at the full rate."""
    alone = config.critic_warmup
    warmup, steps = config.warmup, config.steps - alone

    def factor(step: int) -> float:
        if step < alone:
            return 1.0
        step -= alone
        if step < warmup:
            return (step + 1) / (warmup + 1)
        left = max(0.0, (steps - step) / max(1, steps - warmup))
        return {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[config.schedule]

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def check_optimizer(config: PPOConfig) -> None:
    """Raises RecipeError where the optimizer's library isn't installed."""
    if config.optimizer != "adamw" and importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"ppo.optimizer {config.optimizer} needs bitsandbytes: pip install 'ppo-rlhf[8bit]', or set adamw"
        )
