"""Recipes from YAML: shipped ones and the user's own, with overrides; errors name the key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from rlhf_lib.credentials import refusal
from rlhf_lib.errors import RecipeError
from rlhf_lib.recipe.explain import explain, is_section
from rlhf_lib.recipe.recipe import Recipe


def shipped() -> list[str]:
    """Names of the recipes in the package, sorted."""
    folder = resources.files("rlhf_lib") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Read a shipped recipe by name, or any YAML file by path, apply `a.b=c` overrides and validate.

    Raises RecipeError for an unknown recipe, unreadable YAML, an unknown key, a value of the wrong type, or one that
    holds a password or token: recipes are stored with every run.
    """
    tree = _read(name_or_path)
    for override in overrides or []:
        _apply(tree, override)
    if reason := refusal(tree, f"recipe {name_or_path}"):
        raise RecipeError(reason)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"recipe {name_or_path}: {explain(error, Recipe)}") from None


def flatten(recipe: Recipe) -> dict[str, Any]:
    """`{"ppo.learning_rate": 1.41e-05, ...}`: every setting under its dotted name, lists as they are. The names are the
    same for every recipe: the settings of a section that is off are there too, as None."""
    return _settings(recipe.model_dump(mode="json"), Recipe)


def _settings(tree: Mapping[str, Any] | None, section: type[BaseModel]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, field in section.model_fields.items():
        value = tree[key] if tree is not None else None
        inner = next((o for o in (field.annotation, *_options(field.annotation)) if is_section(o)), None)
        if inner is None:
            flat[key] = value
        else:
            flat |= {f"{key}.{name}": leaf for name, leaf in _settings(value, inner).items()}
    return flat


def _options(annotation: Any) -> tuple[Any, ...]:
    """What a union may hold; a list or a mapping is not a union."""
    return () if get_origin(annotation) in (list, dict) else get_args(annotation)


def leaves(tree: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`: every value that isn't a mapping, under its joined keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}{separator}{name}": leaf for name, leaf in leaves(value, separator).items()}
        else:
            flat[key] = value
    return flat


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RecipeError(f"recipe file {name_or_path} doesn't exist")
        text = path.read_text()
    elif name_or_path in shipped():
        text = (resources.files("rlhf_lib") / "recipes" / f"{name_or_path}.yaml").read_text()
    else:
        near = difflib.get_close_matches(name_or_path, shipped(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(
            f"unknown recipe '{name_or_path}': {hint}shipped recipes: {', '.join(shipped())}; the path "
            "of your own must end in .yaml"
        )
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {name_or_path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {name_or_path} must be a mapping of sections (name, data, policy, ...)")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set `a.b=c` in the tree, reading the value as YAML; null or missing sections are created."""
    dotted, separator, value = override.partition("=")
    if not separator or not dotted:
        raise RecipeError(f"override '{override}' must have the form section.key=value")
    node = tree
    *parents, leaf = dotted.strip().split(".")
    for key in parents:
        child = node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise RecipeError(f"override '{override}': '{key}' is a value, not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"override '{override}': the value is not valid YAML: {error}") from None
