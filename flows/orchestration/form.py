"""The rlhf flow's trigger form: the settings that people change most, typed, with bounds and help.

Prefect's API validates a run's parameters against the schema made of these, so a bad value never becomes a run. Bounds
and help come from rlhf_lib/recipe/.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, WithJsonSchema
from pydantic.experimental.missing_sentinel import MISSING

from rlhf_lib.credentials import PATTERN
from rlhf_lib.recipe import Recipe, shipped
from tasks.stage.keys import STAGES

# flow parameter -> the recipe's key that it sets
KNOBS = {
    "ppo_steps": "ppo.steps",
    "learning_rate": "ppo.learning_rate",
    "kl_coef": "ppo.kl_coef",
    "batch_size": "ppo.batch_size",
    "seed": "seed",
    "reward_label": "reward.label",
}


def titled(title: str, **schema: Any) -> Any:
    """A parameter's title in the form, and more of its schema (choices, bounds)."""
    return Field(json_schema_extra={"title": title, **schema})


def optional(**schema: Any) -> WithJsonSchema:
    """One field that may stay empty; for a union of a number and null Prefect's form would show two."""
    return WithJsonSchema(schema)


def knob(key: str, **bounds: float) -> WithJsonSchema:
    """A field for the recipe's `key`; empty: the recipe's value. `bounds` are the form's own, besides those of the
    recipe."""
    wanted = _key_schema(key)
    kind = next((option for option in wanted.get("anyOf", []) if option["type"] != "null"), wanted)
    limits = {name: kind[name] for name in ("type", "minimum", "exclusiveMinimum", "maximum") if name in kind}
    about = wanted["description"]
    about = f"{about[:1].upper()}{about[1:]}. Empty: as the recipe says ({key})."
    return optional(**limits, **bounds, description=about)


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """The function's signature for the form: parameters with default None get no default, so that an empty field is
    left out of a run's parameters. Prefect would otherwise fill in null and refuse it as not a number."""
    read = inspect.signature(function, eval_str=True)
    fields = read.parameters.values()
    return read.replace(parameters=[f.replace(default=MISSING) if f.default is None else f for f in fields])


def settings(given: dict[str, Any]) -> list[str]:
    """The form's fields that are filled in, as overrides of the recipe."""
    filled = [f"{key}={json.dumps(given[name])}" for name, key in KNOBS.items() if given[name] is not None]
    return filled if given["promote"] else [*filled, "registration.promote=false"]


def _key_schema(key: str) -> dict[str, Any]:
    """The schema of this key alone; the whole recipe's takes half a second."""
    *sections, leaf = key.split(".")
    section: Any = Recipe
    for name in sections:
        section = section.model_fields[name].annotation
    field = section.model_fields[leaf]
    kind: Any = Annotated[field.annotation, field]
    return TypeAdapter(kind).json_schema()


_SECTIONS = "|".join(name for name in Recipe.model_fields if name not in ("name", "about"))

RecipeName = Annotated[str, titled("Recipe", enum=list(shipped()))]
Steps = Annotated[int | None, knob("ppo.steps", maximum=1_000_000), titled("PPO steps")]
LearningRate = Annotated[float | None, knob("ppo.learning_rate", maximum=1), titled("Learning rate")]
KLCoefficient = Annotated[float | None, knob("ppo.kl_coef", maximum=100), titled("KL coefficient")]
BatchSize = Annotated[int | None, knob("ppo.batch_size", maximum=65_536), titled("Batch size")]
Seed = Annotated[int | None, knob("seed", maximum=2**31 - 1), titled("Seed")]
Label = Annotated[str | None, knob("reward.label"), titled("Reward label")]
Promote = Annotated[bool, titled("Promote")]
Overrides = Annotated[
    list[str] | None,
    optional(type="array", items={"type": "string", "pattern": rf"{PATTERN}({_SECTIONS})(\.[A-Za-z0-9_]+)*\s*="}),
    titled("Overrides"),
]
RecipeFile = Annotated[str | None, optional(type="string", pattern=r"\.ya?ml$"), titled("Recipe file")]
Fresh = Annotated[bool, titled("Fresh")]
Until = Annotated[
    str | None, optional(type="string", enum=[stage.name for stage in STAGES]), titled("Stop after stage")
]
Minutes = Annotated[float | None, optional(type="number", exclusiveMinimum=0), titled("Time limit")]
