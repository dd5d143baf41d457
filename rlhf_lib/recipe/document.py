"""Every key of a recipe, documented: `python -m rlhf_lib.recipe.document docs/recipes.md` rewrites the page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lib.recipe.loading import load_recipe, shipped
from rlhf_lib.recipe.recipe import Recipe

_HEAD = """\
# Recipes

<!-- Generated from rlhf_lib/recipe/ and rlhf_lib/recipes/ by `make docs`: edit those. -->

A recipe is one YAML file. `rlhf recipes` lists the shipped ones, `rlhf show NAME` prints one with all its settings,
and `rlhf run NAME --set section.key=value` runs it with a setting changed. [A new one](how-to/new-recipe.md) takes
ten lines.

| recipe | what | models | hardware | time |
|---|---|---|---|---|
"""
_KEYS = """
# Keys

Types are YAML's. A key without a default must be given. A section that is null by default is off until one of its keys
is set. Unknown keys are refused.
"""
_TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true, false", "object": "mapping"}
_NAMED = ".NAME"  # stands for the names that a recipe gives
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class Group(NamedTuple):
    """A section of the recipe: its dotted name, what it is, whether it is null by default, and its keys."""

    name: str
    about: str
    null: bool
    keys: dict[str, dict[str, Any]]  # dotted name -> JSON schema, `required` among it


def document() -> str:
    """The page as Markdown."""
    recipes = [load_recipe(name) for name in shipped()]
    text = _HEAD
    for recipe in recipes:
        about = recipe.about
        text += _row(f"`{recipe.name}`", recipe.description, about.models, about.hardware, about.time)
    text += _KEYS
    for group in groups():
        text += f"\n## {group.name or 'the recipe itself'}\n\n"
        text += ("Null by default. " if group.null else "") + group.about + "\n\n"
        text += "| key | type | default | |\n|---|---|---|---|\n"
        for name, schema in group.keys.items():
            default = "" if schema["required"] else f"`{json.dumps(schema['default'], ensure_ascii=False)}`"
            text += _row(f"`{name}`", _type(schema), default, schema.get("description", ""))
    return text


def groups() -> Iterator[Group]:
    """The recipe's sections in order, from its JSON schema; `[]` after a name marks an item of a list, NAME one that
    the recipe names."""
    root = Recipe.model_json_schema()
    listed: set[str] = set()
    for group in _groups("", root, root["$defs"], about="Its name, and what it is about.", null=False, within=[]):
        repeats = group.name.endswith("[]") or f"{_NAMED}." in group.name
        if not (repeats and group.about in listed):  # a list's items and the like are described where they first occur
            yield group
        listed.add(group.about)


def _groups(
    name: str, section: dict[str, Any], definitions: dict[str, Any], *, about: str, null: bool, within: list[str]
) -> Iterator[Group]:
    prefix = f"{name}." if name else ""
    keys: dict[str, dict[str, Any]] = {}
    below: list[Group] = []
    for key, schema in section["properties"].items():
        reference, mark = _section(schema)
        if reference is None or reference in within:
            keys[prefix + key] = {**schema, "required": key in section.get("required", [])}
        if reference is None:
            continue
        if mark:  # a list of sections is a key too
            keys[prefix + key] = {**schema, "required": key in section.get("required", [])}
        if reference not in within:
            inner = definitions[reference]
            said = " ".join(inner.get("description", "").split())
            below += _groups(
                prefix + key + mark,
                inner,
                definitions,
                about=said,
                null=not mark and "anyOf" in schema,
                within=[*within, reference],
            )
    if keys:
        yield Group(name, about, null, keys)
    yield from below


def _section(schema: dict[str, Any]) -> tuple[str | None, str]:
    """(the section that a key holds, "[]" if it is a list of them, ".NAME" for sections by name); (None, "") for a
    plain value."""
    for option in (schema, *schema.get("anyOf", [])):
        named: Any = option.get("additionalProperties") or next(iter(option.get("patternProperties", {}).values()), {})
        for inner, mark in ((option, ""), (option.get("items", {}), "[]"), (named, _NAMED)):
            if isinstance(inner, dict) and "$ref" in inner:
                return inner["$ref"].rpartition("/")[2], mark
    return None, ""


def _type(schema: dict[str, Any]) -> str:
    """In words: choices spelled out, bounds shown."""
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "$ref" in schema:
        return "section"
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    kind = schema["type"]
    if kind == "object":
        values = schema.get("additionalProperties")
        if values is True:
            return "values by name"
        return f"{_type(values)}s by name" if isinstance(values, dict) and "type" in values else "sections by name"
    if kind == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        count = f"{len(items)} " if "prefixItems" in schema else ""
        return f"list of {count}{_type(items[0])}s"
    if schema.get("format") == "date":
        return "date"
    bounds = ", ".join(f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema)
    return " ".join(part for part in (_TYPES.get(kind, kind), bounds) if part)


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document())
