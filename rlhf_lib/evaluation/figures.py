"""Figures under flat names, the same wherever they are logged: `reward/delta`, `reward/ci95_low`, ..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lib.recipe import leaves


def flat_figures(tree: Mapping[str, Any]) -> dict[str, float]:
    """`{"reward": {"delta": 1, "ci95": (0, 2)}}` -> `{"reward/delta": 1.0, "reward/ci95_low": 0.0, ...}`; figures that
    don't apply (None) are left out, never 0."""
    flat: dict[str, float] = {}
    for name, value in leaves(tree, "/").items():
        if name.rpartition("/")[2] == "ci95":
            flat |= {f"{name}_low": float(value[0]), f"{name}_high": float(value[1])}
        elif value is not None:
            flat[name] = float(value)
    return flat
