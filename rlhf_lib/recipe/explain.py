"""What doesn't validate, in one line: the setting, what is wrong with it, and what was probably meant."""

from __future__ import annotations

import difflib
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

# Names in other libraries (TRL, trlX, Transformers) and abbreviations -> ours. What is merely misspelt needs no entry.
ELSEWHERE = {
    "adap_kl_ctrl": "kl_controller",
    "eos_penalty": "missing_eos_penalty",
    "epochs": "ppo_epochs",
    "eval_interval": "eval_every",
    "eval_steps": "eval_every",
    "horizon": "kl_horizon",
    "kl_penalty": "kl_estimator",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "max_length": "max_new_tokens",
    "max_steps": "steps",
    "minibatch_size": "mini_batch_size",
    "num_epochs": "epochs",
    "num_layers_unfrozen": "unfrozen_layers",
    "num_ppo_epochs": "ppo_epochs",
    "num_rollouts": "batch_size",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "rank": "r",
    "response_length": "max_new_tokens",
    "save_steps": "checkpoint_every",
    "score_clip": "clip_scores",
    "stop_strings": "stop",
    "stop_token": "stop",
    "target": "kl_target",
    "total_steps": "steps",
    "use_score_norm": "normalize_scores",
    "use_score_scaling": "scale_scores",
}


def explain(error: ValidationError, section: type[BaseModel]) -> str:
    """Every fault of the error that `section` raised, by the setting's dotted name."""
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            near = _near(str(fault["loc"][-1]), _keys_beside(fault["loc"], section))
            lines.append(f"unknown key '{where}'" + (f": did you mean '{near}'?" if near else ""))
        else:
            given = fault.get("input")
            shown = f" (given: {given!r})" if not isinstance(given, dict) else ""
            said = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {said}{shown}" if where else f"{said}{shown}")
    return "; ".join(lines)


def _near(key: str, known: list[str]) -> str | None:
    """The known key that was probably meant."""
    if ELSEWHERE.get(key) in known:
        return ELSEWHERE[key]
    return next(iter(difflib.get_close_matches(key, known, n=1)), None)


def _keys_beside(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """The keys known to the section below `root` that holds `location`."""
    section: Any = root
    within = iter(location[:-1])
    for key in within:
        field = section.model_fields.get(str(key)) if hasattr(section, "model_fields") else None
        if field is None:
            return []
        section = next((o for o in (field.annotation, *get_args(field.annotation)) if is_section(o)), None)
        if section is None:
            return []
        if get_origin(field.annotation) is dict:
            next(within, None)  # the name of one of several such sections
    return list(section.model_fields)


def is_section(annotation: Any) -> bool:
    """Whether the annotation is a section's class."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
