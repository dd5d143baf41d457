"""Several data sets read as one: rows joined in the list's order, each knowing its set; training rows are taken as
often as their set's weight says."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from rlhf_lib.recipe import JoinedSetConfig, SourceConfig

if TYPE_CHECKING:
    from datasets import Dataset

SET = "__set__"  # the column with the number of a row's set

Datasets = str | list[JoinedSetConfig] | None
T = TypeVar("T")


class Part(NamedTuple):
    """One of the joined sets: its description, its columns, and its rows in the whole."""

    name: str
    columns: list[str]
    start: int
    stop: int


def items(source: SourceConfig, default: Datasets = None) -> list[tuple[SourceConfig, float]]:
    """The data sets that the source names, each as a source of its own with its weight; `default` where it names none.

    What an item leaves null is the source's. From the default only data sets and weights are taken, not splits: these
    belong to whoever wrote them.
    """
    named = source.dataset if source.dataset is not None else default
    if not isinstance(named, list):
        return [(source.model_copy(update={"dataset": named}), 1.0)]
    own = source.dataset is not None
    return [
        (
            SourceConfig(
                dataset=item.dataset,
                name=item.name or source.name,
                data_dir=item.data_dir or source.data_dir,
                split=(item.split if own else None) or source.split,
            ),
            item.weight,
        )
        for item in named
    ]


def is_list(source: SourceConfig, default: Datasets = None) -> bool:
    """Whether several sets are to be joined (or one in a list, which may have a weight too)."""
    return isinstance(source.dataset if source.dataset is not None else default, list)


def join(parts: Sequence[Dataset], names: Sequence[str]) -> Dataset:
    """The rows of all parts, one after the other, with the column SET; columns that a part lacks are null in its rows.

    Columns of different types take the first part's where they can be cast to it. Where they can't, each part has its
    own under another name, which `sets` undoes; who needs the one column gets an error (see `missing`).
    """
    from datasets import Value, concatenate_datasets

    wanted: dict[str, Any] = {}
    clashes: dict[str, str] = {}
    aligned = []
    for number, (part, name) in enumerate(zip(parts, names, strict=True)):
        part = part.with_format(None)
        for column, feature in part.features.items():
            first = wanted.setdefault(column, feature)
            if feature != first:
                try:
                    part = part.cast_column(column, first)
                except Exception:  # Arrow raises a dozen kinds
                    clashes[column] = f"it holds {feature} in {name}, but {first} in those before"
        numbers = np.full(len(part), number)
        aligned.append(part.add_column(SET, numbers, feature=Value("int32")))
    renamed = [
        part.rename_columns({column: _apart(number, column) for column in clashes if column in part.features})
        for number, part in enumerate(aligned)
    ]
    joined = concatenate_datasets(renamed)
    stops = np.cumsum([len(part) for part in parts]).tolist()
    told = [Part(*facts) for facts in zip(names, [p.column_names for p in parts], [0, *stops], stops, strict=False)]
    joined.info.description = json.dumps({"parts": told, "clashes": clashes})
    return joined


def _apart(number: int, column: str) -> str:
    return f"{SET}{number} {column}"


def sets(dataset: Dataset, where: str) -> list[tuple[str, Dataset]]:
    """The sets that it was joined from, by their descriptions, each with its own columns and without the SET of
    others; the data set itself, described by `where`, if it is a single one."""
    found = []
    for number, part in enumerate(parts(dataset)):
        rows = dataset.select(range(part.start, part.stop))
        own = {_apart(number, column): column for column in part.columns}
        held = {name: own.get(name, name) for name in rows.column_names if own.get(name, name) in part.columns}
        found.append((part.name, rows.select_columns(list(held)).rename_columns(held)))
    return found or [(where, dataset)]


def parts(dataset: Dataset) -> list[Part]:
    """The sets that it was joined from; none for a single one."""
    if SET not in dataset.column_names:
        return []
    return [Part(*facts) for facts in json.loads(dataset.info.description)["parts"]]


def missing(dataset: Dataset, column: str, where: str) -> str | None:
    """Why the column isn't there for every row, naming the set at fault; None where it is."""
    for part in parts(dataset) or [Part(where, dataset.column_names, 0, len(dataset))]:
        if column not in part.columns:
            return f"column '{column}' not found in {part.name} (available: {', '.join(part.columns)})"
    if column not in dataset.column_names:
        clash = json.loads(dataset.info.description)["clashes"][column]
        return f"column '{column}' can't be joined: {clash}"
    return None


def row_place(dataset: Dataset, row: int, where: str) -> str:
    """`data set X, row N`, counted in the row's own set."""
    for part in parts(dataset):
        if part.start <= row < part.stop:
            return f"{part.name}, row {row - part.start}"
    return f"{where}, row {row}"


class Mixture:
    """How many items of each set there are, and how often they are taken.

    `keys`: what each row of the data set becomes, told apart by which an item is known later on; an item that several
    sets hold counts as the first one's. A single set takes every item once and has nothing to report.
    """

    def __init__(self, dataset: Dataset, keys: Sequence[Hashable], sets: Sequence[tuple[SourceConfig, float]]) -> None:
        self.parts = parts(dataset)
        self.weights = [weight for _, weight in sets]
        self.names = _short_names([str(source.dataset) for source, _ in sets])
        self.set_of: dict[Hashable, int] = {}
        for number, part in enumerate(self.parts):
            for key in keys[part.start : part.stop]:
                self.set_of.setdefault(key, number)

    def take(self, items: list[T], keys: Sequence[Hashable], seed: int) -> tuple[list[T], dict[str, Any]]:
        """The items as often as their set's weight says, in an order drawn with the seed where a weight isn't 1; and
        the report's `sets`: rows, kept and taken of each, empty for a single set.

        Of n items with weight w, round(w * n) are taken: each w times rounded down, the rest drawn.
        """
        if not self.parts:
            return items, {}
        places: list[list[int]] = [[] for _ in self.parts]
        for place, key in enumerate(keys):
            places[self.set_of[key]].append(place)
        rng = np.random.default_rng([seed, 5])
        taken = []
        for own, weight in zip(places, self.weights, strict=True):
            whole, rest = divmod(round(weight * len(own)), max(1, len(own)))
            taken.append(own * whole + [own[i] for i in rng.permutation(len(own))[:rest]])
        report = {
            name: {"rows": part.stop - part.start, "kept": len(own), "taken": len(some)}
            for name, part, own, some in zip(self.names, self.parts, places, taken, strict=True)
        }
        if set(self.weights) == {1.0}:
            return items, {"sets": report}
        every = [place for some in taken for place in some]
        return [items[every[i]] for i in rng.permutation(len(every))], {"sets": report}


def _short_names(datasets: Sequence[str]) -> list[str]:
    """The last parts of the sets' names, fit for metrics, numbered where they agree."""
    short = [re.sub(r"[^\w.-]", "-", Path(name.rstrip("/")).name) for name in datasets]
    seen: Counter[str] = Counter()
    names = []
    for name in short:
        seen[name] += 1
        names.append(name if short.count(name) == 1 else f"{name}-{seen[name]}")
    return names
