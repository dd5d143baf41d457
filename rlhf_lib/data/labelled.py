"""Labelled texts for training a classifier: one or several labels per text, as numbers or names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_lib.data.joined import row_place
from rlhf_lib.data.sources import (
    Funnel,
    describe_source,
    first_seen,
    load_sources,
    mixture,
    require_columns,
    sources,
    text_column,
)
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import Recipe
from rlhf_lib.statistics import counted

if TYPE_CHECKING:
    from datasets import Dataset

KEY = "data.labelled"


@dataclass(frozen=True)
class LabelledTexts:
    """Columns `text` and `labels` (a list of numbers, ascending); `names` of the labels in their numbers' order."""

    train: Dataset
    test: Dataset
    names: list[str]
    report: dict[str, Any]


def load_labelled(recipe: Recipe, loaded: Mapping[str, Dataset] | None = None) -> LabelledTexts:
    """The recipe's labelled texts in an order drawn with its seed.

    A text's label is a number, a name, or a list of either; null and the empty list are none. The names are the
    recipe's, else those of the set's ClassLabel feature, else the labels that occur, sorted. Dropped and counted: empty
    texts, texts without a label, repeated texts with the same labels, training texts that are test texts, and those
    above `limit`. Of several sets joined, training texts are taken as often as their set's weight says.

    Args:
        loaded: the splits as `load_sources` opens them, where the caller has them already.

    Raises:
        DataError: missing set, split or column, a label that isn't among the names (with its row), fewer than two
            names, or a filter that leaves nothing.
    """
    settings = recipe.data.labelled
    if settings is None:
        raise DataError("data.labelled is null: this recipe has no labelled texts")
    loaded = loaded or load_sources(recipe, "labelled")
    described = {role: describe_source(source, default) for role, (source, default, _) in sources(recipe).items()}
    columns = {}
    for split in ("train", "test"):
        dataset, where = loaded[f"labelled/{split}"], described[f"labelled/{split}"]
        require_columns(dataset, [settings.label], where, f"{KEY}.label")
        texts = text_column(dataset, settings.text, where, f"{KEY}.text")
        columns[split] = (texts, [_as_list(value) for value in dataset.with_format(None)[settings.label]])
    features = _feature_names(loaded["labelled/train"], settings.label)
    names = label_names(
        settings.names,
        features,
        [value for _, labels in columns.values() for values in labels for value in values],
    )
    if len(names) < 2:
        if settings.names is not None:
            raise DataError(
                f"{KEY}.names has {len(names)} name, and a classifier needs two: complete it, or set it to null"
            )
        raise DataError(
            f"{described['labelled/train']}: column '{settings.label}' has {counted(len(names), 'different label')}, "
            f"and a classifier needs two. Set {KEY}.label"
        )

    # without names of anybody's, the labels that occur are their own names, numbers too
    numbered = settings.names is not None or features is not None
    rows: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    funnels: dict[str, Funnel] = {}
    for split in ("test", "train"):
        where = described[f"labelled/{split}"]
        texts, labels = columns[split]
        funnel = Funnel(where, len(texts))
        place = partial(row_place, loaded[f"labelled/{split}"], where=where)
        found = [
            (text, _numbers(values, names, numbered, f"{place(row)}, column '{settings.label}'"))
            for row, (text, values) in enumerate(zip(texts, labels, strict=True))
        ]
        sets = mixture(recipe, f"labelled/{split}", loaded[f"labelled/{split}"], found)
        full = (bool(text.strip()) for text, _ in found)
        found = funnel.keep("empty", found, full, f"Does '{settings.text}' hold the texts? Set {KEY}.text")
        some = (bool(numbers) for _, numbers in found)
        found = funnel.keep("no label", found, some, f"Does '{settings.label}' hold the labels? Set {KEY}.label")
        found = funnel.keep("duplicate", found, first_seen(found), "")
        if split == "train":
            held_out = {text for text, _ in rows["test"]}
            found = funnel.keep(
                "in test",
                found,
                (text not in held_out for text, _ in found),
                "Training and test texts are the same: point data.labelled.test at other rows, e.g. by a split slice",
            )
        order = np.random.default_rng([recipe.seed, 1 if split == "train" else 2]).permutation(len(found))
        rows[split], funnels[split] = [found[i] for i in order], funnel
    if settings.limit is not None:
        funnels["train"].dropped["limit"] = max(0, len(rows["train"]) - settings.limit)
        rows["train"] = rows["train"][: settings.limit]
    report = {split: funnels[split].report(len(rows[split])) for split in ("train", "test")}
    rows["train"], taken = sets.take(rows["train"], rows["train"], recipe.seed)
    report["train"] |= taken
    return LabelledTexts(_dataset(rows["train"]), _dataset(rows["test"]), names, report)


def label_names(given: Sequence[str] | None, features: Sequence[str] | None, values: Sequence[Any]) -> list[str]:
    """The labels' names in numerical order: as given, from the data set's features, or the values that occur. Raises
    DataError for repeated names, and if the given ones are the data set's own in another order.

    Raises DataError for repeated names, and where the given ones are the set's own in another order.
    """
    if given is None:
        if features is not None:
            return list(features)
        distinct = set(values)
        whole = all(isinstance(value, int) for value in distinct)
        return [str(value) for value in (sorted(distinct) if whole else sorted(distinct, key=str))]
    if len(set(given)) < len(given):
        twice = next(name for i, name in enumerate(given) if name in given[:i])
        raise DataError(f"{KEY}.names has '{twice}' twice")
    if features is not None and list(given) != list(features) and sorted(given) == sorted(features):
        at = next(i for i, (ours, theirs) in enumerate(zip(given, features, strict=True)) if ours != theirs)
        raise DataError(
            f"{KEY}.names are the data set's own in another order (label {at} is '{features[at]}' there, '{given[at]}' "
            "here): set it to null"
        )
    return list(given)


def _feature_names(dataset: Dataset, column: str) -> list[str] | None:
    """The names of a ClassLabel feature, or of a list of such."""
    feature = dataset.features[column]
    return getattr(getattr(feature, "feature", feature), "names", None)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _numbers(values: list[Any], names: list[str], numbered: bool, where: str) -> tuple[int, ...]:
    """Distinct label numbers, ascending. Raises DataError."""
    found = set()
    for value in values:
        if numbered and isinstance(value, int):
            if not 0 <= value < len(names):
                raise DataError(
                    f"{where}: label {value} has no name, the {len(names)} names are those of 0 to {len(names) - 1}. "
                    f"Set {KEY}.names"
                )
            found.add(int(value))
        elif isinstance(value, int | str):
            if str(value) not in names:
                raise DataError(f"{where}: unknown label '{value}' (known: {', '.join(names)}). Set {KEY}.names")
            found.add(names.index(str(value)))
        else:
            raise DataError(f"{where} holds {value!r}, neither a label's number nor its name. Set {KEY}.label")
    return tuple(sorted(found))


def _dataset(rows: list[tuple[str, tuple[int, ...]]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict({"text": [text for text, _ in rows], "labels": [list(numbers) for _, numbers in rows]})
