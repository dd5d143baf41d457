"""TRL 0.11's PPOConfig: its field names and defaults, translated into the engine's settings."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from rlhf_lib import recipe
from rlhf_lib.errors import RecipeError

# The engine's name of a setting -> TRL's, where the value goes over as it is.
SETTINGS = {
    "batch_size": "batch_size",
    "mini_batch_size": "backward_batch_size",  # in the engine's words: rows per optimizer step
    "ppo_epochs": "ppo_epochs",
    "learning_rate": "learning_rate",
    "max_grad_norm": "max_grad_norm",
    "gamma": "gamma",
    "lam": "lam",
    "kl_coef": "init_kl_coef",
    "kl_target": "target",
    "kl_horizon": "horizon",
    "cliprange": "cliprange",
    "cliprange_value": "cliprange_value",
    "vf_coef": "vf_coef",
    "whiten_rewards": "whiten_rewards",
    "scale_scores": "use_score_scaling",
    "normalize_scores": "use_score_norm",
    "clip_scores": "score_clip",
    "ratio_threshold": "ratio_threshold",
}
ESTIMATORS = {"kl": "k1", "mse": "k2"}  # Schulman's names of two of TRL's penalties


@dataclass
class PPOConfig:
    """Settings of `PPOTrainer`, under TRL 0.11's names and with its defaults.

    `model_name`, `query_dataset`, `reward_model`, `task_name`, `exp_name` and `steps` are for trackers only, as there.
    `accelerator_kwargs={"mixed_precision": "bf16"}` makes the passes run in bf16 over weights in fp32. Raises
    RecipeError for a value out of its range and for what the engine doesn't do; TypeError for an unknown field.
    """

    exp_name: str = field(default_factory=lambda: Path(sys.argv[0]).stem)
    seed: int = 0
    log_with: Literal["wandb", "tensorboard"] | None = None
    task_name: str | None = None
    model_name: str = "gpt2"
    query_dataset: str = "stanfordnlp/imdb"
    reward_model: str = "sentiment-analysis:lvwerra/distilbert-imdb"
    remove_unused_columns: bool = True
    tracker_kwargs: dict = field(default_factory=dict)
    accelerator_kwargs: dict = field(default_factory=dict)
    project_kwargs: dict = field(default_factory=dict)
    tracker_project_name: str = "trl"
    push_to_hub_if_best_kwargs: dict = field(default_factory=dict)
    steps: int = 20000
    learning_rate: float = 1.41e-5
    adap_kl_ctrl: bool = True
    init_kl_coef: float = 0.2
    kl_penalty: Literal["kl", "abs", "mse", "full"] = "kl"
    target: float = 6.0
    horizon: float = 10000.0
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    batch_size: int = 128
    forward_batch_size: int | None = None
    mini_batch_size: int = 128
    gradient_accumulation_steps: int = 1
    world_size: int | None = None
    ppo_epochs: int = 4
    max_grad_norm: float | None = None
    optimize_cuda_cache: bool | None = None
    optimize_device_cache: bool = False
    early_stopping: bool = False
    target_kl: float = 1.0
    compare_steps: int = 1
    ratio_threshold: float = 10.0
    use_score_scaling: bool = False
    use_score_norm: bool = False
    score_clip: float | None = None
    whiten_rewards: bool = False
    gradient_checkpointing: bool = False
    # The next five are worked out here and by the trainer, whatever is given, as in TRL.
    is_encoder_decoder: bool | None = None
    is_peft_model: bool | None = None
    backward_batch_size: int | None = None
    global_backward_batch_size: int | None = None
    global_batch_size: int | None = None
    dataset_num_proc: int | None = None

    def __post_init__(self) -> None:
        if self.forward_batch_size is not None:
            warnings.warn("forward_batch_size is TRL's old name of mini_batch_size, which it overwrites", stacklevel=3)
            self.mini_batch_size = self.forward_batch_size
        if self.optimize_cuda_cache is not None:
            self.optimize_device_cache = self.optimize_cuda_cache
        self.backward_batch_size = self.mini_batch_size * self.gradient_accumulation_steps
        if self.backward_batch_size < 1 or self.batch_size % self.backward_batch_size:
            raise RecipeError(
                f"batch_size ({self.batch_size}) must be a multiple of mini_batch_size * gradient_accumulation_steps "
                f"({self.mini_batch_size} * {self.gradient_accumulation_steps})"
            )
        if self.kl_penalty not in ESTIMATORS:
            raise RecipeError(f"kl_penalty is {self.kl_penalty!r}, and can only be 'kl' (k1) or 'mse' (k2) here")
        defaults = {f.name: f.default for f in fields(self)}
        if self.push_to_hub_if_best_kwargs or self.compare_steps != defaults["compare_steps"]:
            raise RecipeError(
                "push_to_hub_if_best_kwargs and compare_steps don't work here: leave them out, keep the mean score "
                "that `step` returns, and call trainer.save_pretrained(folder) when it is the best so far"
            )
        if self.log_with not in (None, "wandb", "tensorboard"):
            raise RecipeError(f"log_with is {self.log_with!r}, and can only be 'wandb', 'tensorboard' or None")
        if self.log_with is not None and find_spec(self.log_with) is None:
            raise RecipeError(f"log_with is {self.log_with!r}, which isn't installed: pip install {self.log_with}")
        self.total_ppo_epochs = math.ceil(self.steps / self.batch_size)
        self.to_recipe()  # the ranges

    def to_recipe(self) -> recipe.PPOConfig:
        """The engine's settings (see `recipe.PPOConfig`). Raises RecipeError with TRL's name of the field."""
        try:
            return recipe.PPOConfig.model_validate(
                {
                    "steps": max(self.total_ppo_epochs, 1),
                    "betas": (0.9, 0.999),
                    "eps": 1e-8,
                    "warmup_steps": 0,
                    "weight_decay": 0.0,
                    "kl_controller": "adaptive" if self.adap_kl_ctrl else "fixed",
                    "kl_estimator": ESTIMATORS[self.kl_penalty],
                    "target_kl": self.target_kl if self.early_stopping else None,
                    "old_logprobs": "recompute",
                }
                | {ours: getattr(self, theirs) for ours, theirs in SETTINGS.items()}
            )
        except ValidationError as error:
            faults = ((str(fault["loc"][0]) if fault["loc"] else "", fault) for fault in error.errors())
            raise RecipeError(
                "PPOConfig: "
                + "; ".join(f"{SETTINGS.get(n, n)}: {fault['msg']} (given: {fault['input']!r})" for n, fault in faults)
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """All settings for a tracker, nested ones as `tracker_kwargs/wandb/entity`."""
        flat: dict[str, Any] = {}

        def walk(prefix: str, node: Any) -> None:
            if isinstance(node, dict):
                for key, value in node.items():
                    walk(f"{prefix}/{key}" if prefix else str(key), value)
            else:
                flat[prefix] = node

        walk("", asdict(self))
        return flat
