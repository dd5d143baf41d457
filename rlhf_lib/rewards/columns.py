"""The prompts' other columns, say a solution, on their way to reward functions and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lib.conversation import MESSAGES
from rlhf_lib.rewards.calling import COMPLETION_IDS, Columns

if TYPE_CHECKING:
    from datasets import Dataset

OWN = ("query", "prompt", "input_ids", "attention_mask", MESSAGES)  # what a prompt itself is kept in


def row_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Of prompts as rows; None where a row lacks one that others have."""
    names = {name for row in rows for name in row} - set(OWN)
    return {name: [row.get(name) for row in rows] for name in sorted(names)}


def dataset_columns(prompts: Dataset) -> dict[str, list[Any]]:
    """Of prompts as a data set."""
    plain = prompts.with_format(None)
    return {name: list(plain[name]) for name in prompts.column_names if name not in OWN}


def taken(columns: Columns, rows: Sequence[int]) -> dict[str, list[Any]]:
    """The columns of these rows; those without a value a row (None) left out."""
    return {name: [values[row] for row in rows] for name, values in columns.items() if values is not None}


def with_ids(columns: Columns | None, response_ids: Sequence[Sequence[int]] | None) -> dict[str, Any]:
    """The columns of sampled responses: those of their prompts, and their token ids."""
    ids = None if response_ids is None else [list(row) for row in response_ids]
    return {**(columns or {}), COMPLETION_IDS: ids}
