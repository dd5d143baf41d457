"""The training pairs shared out: parts that judges are trained on, and the rest for the reward model, by prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlhf_lib.errors import DataError
from rlhf_lib.recipe import Recipe
from rlhf_lib.recipe.judges import held_out_shares

if TYPE_CHECKING:
    from datasets import Dataset


def share_out(recipe: Recipe, pairs: Dataset) -> tuple[Dataset, dict[str, Dataset]]:
    """(the reward model's pairs, those of each judge that is trained here), disjoint, and so are their prompts.

    A prompt's part depends on its text, the seed and the shares alone. Raises DataError for a part without pairs.
    """
    shares = held_out_shares(recipe.evaluation.judges)
    if not shares:
        return pairs, {}
    owners = [_owner(prompt, shares, recipe.seed) for prompt in pairs["prompt"]]
    parts = {name: [row for row, owner in enumerate(owners) if owner == name] for name in ("", *shares)}
    for name, rows in parts.items():
        if not rows:
            whom = f"the judge {name}" if name else "the reward model"
            raise DataError(
                f"sharing {len(set(pairs['prompt']))} prompts out left none for {whom}: give data.preferences more, or "
                "change evaluation.judges.*.share"
            )
    return pairs.select(parts[""]), {name: pairs.select(parts[name]) for name in shares}


def _owner(prompt: str, shares: Mapping[str, float], seed: int) -> str:
    """The judge that gets the prompt's pairs; empty for the reward model."""
    place = int(hashlib.sha256(f"judges {seed} {prompt}".encode()).hexdigest()[:13], 16) / 16**13
    for name, share in shares.items():
        place -= share
        if place < 0:
            return name
    return ""
