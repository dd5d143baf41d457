"""Labelled texts, or answers, for training a classifier: one or several labels each, as numbers or names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rlhf_lib.conversation import columns_of, in_full
from rlhf_lib.data.forms import AnswerRow, exchange, read_answers, usable
from rlhf_lib.data.joined import row_place
from rlhf_lib.data.sources import (
    Funnel,
    describe_source,
    first_seen,
    load_sources,
    mixture,
    require_columns,
    sources,
)
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import Recipe
from rlhf_lib.statistics import counted

if TYPE_CHECKING:
    from datasets import Dataset

KEY = "data.labelled"
JUDGED = ["undesirable", "desirable"]  # what false and true say of an answer


@dataclass(frozen=True)
class LabelledTexts:
    """Columns `text` and `labels` (a list of numbers, ascending); `names` of the labels in their numbers' order.

    Where the texts are answers to prompts, columns `prompt` and `completion` too (of other texts "" and the text), and
    for chat models the prompts' `messages`, as in `Pairs`.
    """

    train: Dataset
    test: Dataset
    names: list[str]
    report: dict[str, Any]


class _Row(NamedTuple):
    text: str
    labels: tuple[int, ...]
    prompt: str | None  # None: the text answers nothing
    completion: str
    reason: str | None  # why it can't be used


def load_labelled(recipe: Recipe, loaded: Mapping[str, Dataset] | None = None, *, chat: bool = False) -> LabelledTexts:
    """The recipe's labelled texts in an order drawn with its seed: a column of texts or conversations, or prompts and
    their completions.

    A text's label is a number, a name, or a list of either; null and the empty list are none. The names are the
    recipe's, else those of the set's ClassLabel feature, else for answers that are true or false undesirable and
    desirable, else the labels that occur, sorted. Dropped and counted: answers that aren't one message, empty texts,
    texts without a label, repeated texts with the same labels, training texts that are test texts, and those above
    `limit`. Of several sets joined, training texts are taken as often as their set's weight says.

    Args:
        loaded: the splits as `load_sources` opens them, where the caller has them already.
        chat: whether the answers' prompts become conversations, with the recipe's system message.

    Raises:
        DataError: missing set, split or column, a label that isn't among the names (with its row), fewer than two
            names, answers that are all desirable or all not, or a filter that leaves nothing.
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
        answers = read_answers(dataset, settings.text, where, f"{KEY}.text")
        columns[split] = (answers, [_as_list(value) for value in dataset.with_format(None)[settings.label]])
    features = _feature_names(loaded["labelled/train"], settings.label)
    judged = _judged(loaded["labelled/train"], settings.label, [answers for answers, _ in columns.values()], chat)
    if features is None and judged:
        features = JUDGED
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
    rows: dict[str, list[_Row]] = {}
    funnels: dict[str, Funnel] = {}
    for split in ("test", "train"):
        where = described[f"labelled/{split}"]
        answers, labels = columns[split]
        funnel = Funnel(where, len(answers))
        place = partial(row_place, loaded[f"labelled/{split}"], where=where)
        found = [
            _made(answer, _numbers(values, names, numbered, f"{place(row)}, column '{settings.label}'"), recipe, chat)
            for row, (answer, values) in enumerate(zip(answers, labels, strict=True))
        ]
        sets = mixture(recipe, f"labelled/{split}", loaded[f"labelled/{split}"], found)
        found = usable(found, funnel)
        full = (bool(row.completion.strip()) for row in found)
        found = funnel.keep("empty", found, full, f"Does '{settings.text}' hold the texts? Set {KEY}.text")
        some = (bool(row.labels) for row in found)
        found = funnel.keep("no label", found, some, f"Does '{settings.label}' hold the labels? Set {KEY}.label")
        found = funnel.keep("duplicate", found, first_seen(row[:2] for row in found), "")
        if split == "train":
            held_out = {row.text for row in rows["test"]}
            found = funnel.keep(
                "in test",
                found,
                (row.text not in held_out for row in found),
                "Training and test texts are the same: point data.labelled.test at other rows, e.g. by a split slice",
            )
        order = np.random.default_rng([recipe.seed, 1 if split == "train" else 2]).permutation(len(found))
        rows[split], funnels[split] = [found[i] for i in order], funnel
    if judged and len({row.labels for row in rows["train"]}) == 1:
        raise DataError(
            f"{described['labelled/train']}: every '{settings.label}' is {rows['train'][0].labels == (1,)}, and a "
            "classifier needs answers of both kinds. Add the others"
        )
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


def _judged(train: Dataset, column: str, answers: Sequence[Sequence[AnswerRow]], chat: bool) -> bool:
    """Whether the labels say of answers that they are good, or not. Raises DataError for texts of two kinds, one of
    which no chat template can render."""
    answering = {row.prompt is not None or row.reason is not None for rows in answers for row in rows}
    if chat and len(answering) == 2:
        raise DataError(
            f"{KEY}: some sets hold answers to prompts, others texts alone, which a chat template has no place for: "
            "give all a prompt, or leave the others out"
        )
    return True in answering and getattr(train.features[column], "dtype", None) == "bool"


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


def _made(answer: AnswerRow, labels: tuple[int, ...], recipe: Recipe, chat: bool) -> _Row:
    if answer.prompt is None:
        return _Row(answer.answer, labels, None, answer.answer, answer.reason)
    prompt, completion = exchange(answer.prompt, answer.answer, chat=chat, system=recipe.policy.system)
    return _Row(in_full(prompt, completion), labels, prompt, completion, answer.reason)


def _dataset(rows: list[_Row]) -> Dataset:
    from datasets import Dataset

    columns: dict[str, list[Any]] = {"text": [row.text for row in rows], "labels": [list(row.labels) for row in rows]}
    if any(row.prompt is not None for row in rows):
        columns |= columns_of([row.prompt or "" for row in rows], "prompt")
        columns["completion"] = [row.completion for row in rows]
    return Dataset.from_dict(columns)
