"""Preference pairs: two answers to one prompt, one of them preferred."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rlhf_lib.conversation import columns_of
from rlhf_lib.data.forms import PairRow, exchange, read_pairs, usable
from rlhf_lib.data.rankings.consensus import Feedback, gather
from rlhf_lib.data.sources import (
    Funnel,
    describe_source,
    first_seen,
    load_sources,
    mixture,
    sources,
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
    reason: str | None  # why it is no pair


def load_preferences(recipe: Recipe, loaded: Mapping[str, Dataset] | None = None, *, chat: bool = False) -> Pairs:
    """The recipe's pairs, in any of the forms of rlhf_lib/data/forms.py, or made of human rankings, in an order drawn
    with its seed.

    Dropped and counted: ties, answers that aren't one message, pairs whose prompts differ (nothing says which of the
    two was answered better), empty answers, identical answers, repeated pairs, and training pairs whose prompt a test
    pair has too (with `shared_prompts`, only those that are test pairs themselves). Of human rankings, a prompt's pairs
    are all training or all test pairs, the same ones in every round. Of several sets joined, training pairs are taken
    as often as their set's weight says.

    Args:
        loaded: the splits as `load_sources` opens them, where the caller has them already.
        chat: whether the prompts become conversations, with the recipe's system message.

    Raises:
        DataError: missing set, split or column, a row that is not of its set's form, a margin that is not a number, or
            a filter that leaves nothing.
    """
    preferences = recipe.data.preferences
    if preferences is None:
        raise DataError("data.preferences is null: this recipe has no pairs")
    feedback = sets = None
    if preferences.rankings is not None:
        feedback = gather(preferences.rankings)
        train, test, train_funnel, test_funnel = _ranked(feedback, recipe, preferences, chat)
    else:
        loaded = loaded or load_sources(recipe, "preferences")
        described = {role: describe_source(source, default) for role, (source, default, _) in sources(recipe).items()}
        train_where, test_where = described["preferences/train"], described["preferences/test"]
        test = _read(loaded["preferences/test"], recipe, preferences, test_where, chat)
        test, test_funnel = _clean(test, test_where)
        train = _read(loaded["preferences/train"], recipe, preferences, train_where, chat)
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
        transfer, report["transfer"] = _transfer(recipe, loaded["preferences/transfer"], train, chat)
    return Pairs(_dataset(train), _dataset(test), report, feedback, transfer)


def _transfer(recipe: Recipe, rows: Dataset, train: list[_Pair], chat: bool) -> tuple[Dataset, dict[str, Any]]:
    """The pairs of data.preferences.transfer whose prompt no training pair has, and their funnel's report."""
    preferences = recipe.data.preferences
    assert preferences is not None
    source, default, _ = sources(recipe)["preferences/transfer"]
    where = describe_source(source, default)
    pairs = _read(rows, recipe, preferences.model_copy(update={"margin": None}), where, chat)
    pairs, funnel = _clean(pairs, where)
    trained_on = {pair.prompt for pair in train}
    pairs = funnel.keep(
        "prompt in training",
        pairs,
        (pair.prompt not in trained_on for pair in pairs),
        "All of its prompts are training prompts: point data.preferences.transfer at other rows",
    )
    return _dataset(pairs), funnel.report(len(pairs))


def _ranked(
    feedback: Feedback, recipe: Recipe, preferences: PreferencesConfig, chat: bool
) -> tuple[list[_Pair], list[_Pair], Funnel, Funnel]:
    """Training and test pairs. A prompt's side depends on its text and the seed alone, so that a later round tests on
    the prompts of the earlier ones; either side gets one prompt at least."""
    settings, where = preferences.rankings, "data.preferences.rankings"
    assert settings is not None
    pairs = [
        _made(PairRow(one.prompt, one.prompt, one.chosen, one.rejected, margin), recipe, chat)
        for one in feedback.pairs
        for margin in [one.margin if preferences.margin else None]
    ]
    # with consensus none a repeated pair is another annotator's vote
    pairs, funnel = _clean(pairs, where, repeats=settings.consensus == "none")
    places = sorted({(_place(pair.prompt, recipe.seed), pair.prompt) for pair in pairs})
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
    pairs = usable(pairs, funnel)
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


def _read(dataset: Dataset, recipe: Recipe, settings: PreferencesConfig, where: str, chat: bool) -> list[_Pair]:
    return [_made(row, recipe, chat) for row in read_pairs(dataset, settings, where)]


def _made(row: PairRow, recipe: Recipe, chat: bool) -> _Pair:
    asked = ((row.prompt, row.chosen), (row.rejected_prompt, row.rejected))
    (prompt, chosen), (other, rejected) = (exchange(*both, chat=chat, system=recipe.policy.system) for both in asked)
    return _Pair(prompt, other, chosen, rejected, row.margin, row.reason)


def _dataset(pairs: list[_Pair]) -> Dataset:
    from datasets import Dataset

    columns = columns_of([pair.prompt for pair in pairs], "prompt")
    columns |= {name: [getattr(pair, name) for pair in pairs] for name in ("chosen", "rejected")}
    if pairs[0].margin is not None:
        columns["margin"] = [pair.margin for pair in pairs]
    return Dataset.from_dict(columns)
