"""The optimizers that PPO learns with, and their learning rate."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import get_scheduler

from rlhf_lib.errors import RecipeError

if TYPE_CHECKING:
    from rlhf_lib.recipe import PPOConfig


def build_optimizer(parameters: list[nn.Parameter], config: PPOConfig) -> torch.optim.Optimizer:
    """AdamW, or bitsandbytes' with moments of 8 bits (paged: moved to the host where a GPU's memory runs short).

    Raises RecipeError where bitsandbytes is wanted and not installed.
    """
    check_optimizer(config)
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **settings)
    import bitsandbytes

    kind = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}[config.optimizer]
    return getattr(bitsandbytes.optim, kind)(parameters, **settings)


def build_scheduler(optimizer: torch.optim.Optimizer, config: PPOConfig) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over `config.steps` steps."""
    return get_scheduler(
        "constant_with_warmup" if config.schedule == "constant" else config.schedule,
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=config.steps,
    )


def check_optimizer(config: PPOConfig) -> None:
    """Raises RecipeError where the optimizer's library isn't installed."""
    if config.optimizer != "adamw" and importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"ppo.optimizer {config.optimizer} needs bitsandbytes: pip install 'ppo-rlhf[8bit]', or set adamw"
        )
