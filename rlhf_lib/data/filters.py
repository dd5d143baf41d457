"""Filters that count what they drop, and stop where nothing is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rlhf_lib.errors import DataError

T = TypeVar("T")


@dataclass
class Funnel:
    """One data set on its way through named filters.

    Raises DataError at once where there are no rows to begin with.
    """

    where: str
    rows: int
    dropped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError(f"{self.where} has no rows")

    def keep(self, reason: str, items: list[T], wanted: Iterable[bool], mend: str) -> list[T]:
        """The wanted items; the others are counted under `reason`. Raises DataError, with the mend, if none is left."""
        kept = [item for item, want in zip(items, wanted, strict=True) if want]
        self.dropped[reason] = self.dropped.get(reason, 0) + len(items) - len(kept)
        if not kept:
            counts = ", ".join(f"{name} dropped {count}" for name, count in self.dropped.items())
            raise DataError(f"{self.where}: filter '{reason}' left none of {self.rows} rows ({counts}). {mend}")
        return kept

    def report(self, kept: int) -> dict[str, Any]:
        return {"rows": self.rows, "dropped": dict(self.dropped), "kept": kept}


def first_seen(keys: Iterable[Any]) -> list[bool]:
    """True at each key's first occurrence."""
    seen: set[Any] = set()
    first = []
    for key in keys:
        first.append(key not in seen)
        seen.add(key)
    return first
