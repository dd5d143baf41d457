"""Preference pairs: two answers to one prompt, one of them preferred."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rlhf_lib.data.dialogue import split_dialogue
from rlhf_lib.data.joined import parts, row_place
from rlhf_lib.data.rankings.consensus import Feedback, gather
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
from rlhf_lib.recipe import PreferencesConfig, Recipe

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Pairs:
    """Columns `prompt` (up to and including the last "\\n\\nAssistant:"), `chosen` and `rejected` (the last answers,
    with the white space that joins them to the prompt in front, right-stripped), `margin` where the recipe names one.
    """

    train: Dataset
    test: Dataset
    report: dict[str, Any]
    feedback: Feedback | None = None  # where the pairs come from human rankings
    transfer: Dataset | None = None  # test pairs of another kind


class _Pair(NamedTuple):
    prompt: str
    rejected_prompt: str
    chosen: str
    rejected: str
    margin: float | None


def load_preferences(recipe: Recipe, loaded: Mapping[str, Dataset] | None = None) -> Pairs:
    """The recipe's pairs, whole dialogues or a `prompt` column beside the answers, or made of human rankings, in an
    order drawn with its seed.

    Dropped and counted: pairs whose prompts differ (nothing says which of the two was answered better), empty answers,
    identical answers, repeated pairs, and training pairs whose prompt a test pair has too (with `shared_prompts`, only
    those that are test pairs themselves). Of human rankings, a prompt's pairs are all training or all test pairs, the
    same ones in every round. Of several sets joined, training pairs are taken as often as their set's weight says.

    Args:
        loaded: the splits as `load_sources` opens them, where the caller has them already.

    Raises:
        DataError: missing set, split or column, a row that is not a dialogue, a margin that is not a number, or a
            filter that leaves nothing.
    """
    preferences = recipe.data.preferences
    if preferences is None:
        raise DataError("data.preferences is null: this recipe has no pairs")
    feedback = sets = None
    if preferences.rankings is not None:
        feedback = gather(preferences.rankings)
        train, test, train_funnel, test_funnel = _ranked(feedback, preferences, recipe.seed)
    else:
        loaded = loaded or load_sources(recipe, "preferences")
        described = {role: describe_source(source, default) for role, (source, default, _) in sources(recipe).items()}
        train_where, test_where = described["preferences/train"], described["preferences/test"]
        test, test_funnel = _clean(_read(loaded["preferences/test"], preferences, test_where), test_where)
        train = _read(loaded["preferences/train"], preferences, train_where)
        sets = mixture(recipe, "preferences/train", loaded["preferences/train"], [pair[:4] for pair in train])
        train, train_funnel = _clean(train, train_where)
        if preferences.shared_prompts:
            test_pairs = {pair[:4] for pair in test}
            train = train_funnel.keep(
                "in test",
                train,
                (pair[:4] not in test_pairs for pair in train),
                "Training and test pairs are the same: point data.preferences.test at other rows, e.g. by a split "
                "slice",
            )
        else:
            test_prompts = {pair.prompt for pair in test}
            train = train_funnel.keep(
                "prompt in test",
                train,
                (pair.prompt not in test_prompts for pair in train),
                "Training and test pairs share their prompts: point data.preferences.test at other rows, e.g. by a "
                "split slice; for a task that has no other prompts, set data.preferences.shared_prompts to true",
            )
    train = [train[i] for i in np.random.default_rng([recipe.seed, 1]).permutation(len(train))]
    test = [test[i] for i in np.random.default_rng([recipe.seed, 2]).permutation(len(test))]
    if preferences.limit is not None and preferences.limit < len(train):
        train_funnel.dropped["limit"] = len(train) - preferences.limit
        train = train[: preferences.limit]
    report = {"train": train_funnel.report(len(train)), "test": test_funnel.report(len(test))}
    if sets is not None:
        train, taken = sets.take(train, [pair[:4] for pair in train], recipe.seed)
        report["train"] |= taken
    if feedback is not None:
        report["rankings"] = feedback.report
    transfer = None
    if preferences.transfer is not None:
        loaded = loaded or load_sources(recipe, "preferences")
        transfer, report["transfer"] = _transfer(recipe, loaded["preferences/transfer"], train)
    return Pairs(_dataset(train), _dataset(test), report, feedback, transfer)


def _transfer(recipe: Recipe, rows: Dataset, train: list[_Pair]) -> tuple[Dataset, dict[str, Any]]:
    """The pairs of data.preferences.transfer whose prompt no training pair has, and their funnel's report."""
    preferences = recipe.data.preferences
    assert preferences is not None
    source, default, _ = sources(recipe)["preferences/transfer"]
    where = describe_source(source, default)
    pairs, funnel = _clean(_read(rows, preferences.model_copy(update={"margin": None}), where), where)
    trained_on = {pair.prompt for pair in train}
    pairs = funnel.keep(
        "prompt in training",
        pairs,
        (pair.prompt not in trained_on for pair in pairs),
        "All of its prompts are training prompts: point data.preferences.transfer at other rows",
    )
    return _dataset(pairs), funnel.report(len(pairs))


def _ranked(
    feedback: Feedback, preferences: PreferencesConfig, seed: int
) -> tuple[list[_Pair], list[_Pair], Funnel, Funnel]:
    """Training and test pairs. A prompt's side depends on its text and the seed alone, so that a later round tests on
    the prompts of the earlier ones; either side gets one prompt at least."""
    settings, where = preferences.rankings, "data.preferences.rankings"
    assert settings is not None
    pairs = [
        _Pair(
            pair.prompt,
            pair.prompt,
            _join(pair.prompt, pair.chosen.rstrip()),
            _join(pair.prompt, pair.rejected.rstrip()),
            pair.margin if preferences.margin else None,
        )
        for pair in feedback.pairs
    ]
    # with consensus none a repeated pair is another annotator's vote
    pairs, funnel = _clean(pairs, where, repeats=settings.consensus == "none")
    places = sorted({(_place(pair.prompt, seed), pair.prompt) for pair in pairs})
    if len(places) < 2:
        raise DataError(f"{where}: the pairs have one prompt only, and none is left to test on. Rank another prompt")
    held_out = {prompt for place, prompt in places if place < settings.held_out} or {places[0][1]}
    held_out.discard(places[-1][1])
    test = [pair for pair in pairs if pair.prompt in held_out]
    funnel.dropped["held out"] = len(test)
    return [pair for pair in pairs if pair.prompt not in held_out], test, funnel, Funnel(where, len(test))


def _place(prompt: str, seed: int) -> float:
    """Uniform in [0, 1)."""
    return int(hashlib.sha256(f"{seed} {prompt}".encode()).hexdigest()[:13], 16) / 16**13


def _clean(pairs: list[_Pair], where: str, *, repeats: bool = False) -> tuple[list[_Pair], Funnel]:
    funnel = Funnel(where, len(pairs))
    pairs = funnel.keep(
        "prompts differ",
        pairs,
        (pair.prompt == pair.rejected_prompt for pair in pairs),
        "The two dialogues of a pair must agree up to their last assistant turn",
    )
    pairs = funnel.keep(
        "empty answer",
        pairs,
        (bool(pair.chosen.strip() and pair.rejected.strip()) for pair in pairs),
        "The last assistant turns are empty: check data.preferences.chosen and .rejected",
    )
    pairs = funnel.keep(
        "identical answers",
        pairs,
        (pair.chosen.strip() != pair.rejected.strip() for pair in pairs),
        "data.preferences.chosen and .rejected must name different columns",
    )
    if not repeats:
        pairs = funnel.keep("repeated pair", pairs, first_seen(pair[:4] for pair in pairs), "")
    return pairs, funnel


def _read(dataset: Dataset, preferences: PreferencesConfig, where: str) -> list[_Pair]:
    columns = {
        name: text_column(dataset, column, where, f"data.preferences.{name}")
        for name, column in (("chosen", preferences.chosen), ("rejected", preferences.rejected))
    }
    prompts = _prompts(dataset, where)
    sides = {
        name: [
            _split(text, row_place(dataset, i, where), getattr(preferences, name))
            if prompt is None
            else (prompt, _join(prompt, text.removeprefix(prompt).rstrip()))
            for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]
        for name, texts in columns.items()
    }
    margins = _margins(dataset, preferences.margin, where)
    return [
        _Pair(prompt, rejected_prompt, chosen, rejected, margin)
        for (prompt, chosen), (rejected_prompt, rejected), margin in zip(
            sides["chosen"], sides["rejected"], margins, strict=True
        )
    ]


def _prompts(dataset: Dataset, where: str) -> list[str | None]:
    """The column `prompt`; None for rows of a set without one, whose answers are whole dialogues."""
    if "prompt" not in dataset.column_names:
        return [None] * len(dataset)
    joined = parts(dataset)
    if all("prompt" in part.columns for part in joined):
        return list(text_column(dataset, "prompt", where, None))
    read = dataset.with_format(None)["prompt"]
    return [
        (read[row] or "") if "prompt" in part.columns else None
        for part in joined
        for row in range(part.start, part.stop)
    ]


def _split(text: str, place: str, column: str) -> tuple[str, str]:
    try:
        prompt, answer = split_dialogue(text)
    except DataError as error:
        raise DataError(
            f"{place}, column '{column}' {error}. Answers alone need a column 'prompt' beside them"
        ) from None
    return prompt, _join(prompt, answer)


def _join(prompt: str, answer: str) -> str:
    """The answer with white space in front, so that prompt + answer reads as text."""
    return f" {answer}" if answer and not answer[0].isspace() and not prompt[-1:].isspace() else answer


def _margins(dataset: Dataset, column: str | None, where: str) -> list[float | None]:
    if column is None:
        return [None] * len(dataset)
    require_columns(dataset, [column], where, "data.preferences.margin")
    margins = dataset.with_format(None)[column]
    for row, margin in enumerate(margins):
        if not isinstance(margin, (int, float)) or not np.isfinite(margin):
            raise DataError(
                f"{row_place(dataset, row, where)}: margin column '{column}' holds {margin!r}, not a number. Set "
                "data.preferences.margin to another column, or to null"
            )
    return [float(margin) for margin in margins]


def _dataset(pairs: list[_Pair]) -> Dataset:
    from datasets import Dataset

    columns: dict[str, list[Any]] = {
        name: [getattr(pair, name) for pair in pairs] for name in ("prompt", "chosen", "rejected")
    }
    if pairs[0].margin is not None:
        columns["margin"] = [pair.margin for pair in pairs]
    return Dataset.from_dict(columns)
