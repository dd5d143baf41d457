"""Prompts: rows of a data set turned into the queries that the policy continues: filters, duplicates, held-out split,
leakage. All of this is about text; rlhf_lib/data/prompt_tokens.py needs the policy's tokenizer."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import load_from_disk

from rlhf_lib.conversation import MESSAGES, Conversation, columns_of
from rlhf_lib.data.dialogue import HUMAN, first_turn, split_dialogue
from rlhf_lib.data.joined import SET, row_place
from rlhf_lib.data.losses import NEAR
from rlhf_lib.data.near_duplicates import near_duplicates
from rlhf_lib.data.sources import (
    Funnel,
    conversations,
    describe_source,
    first_seen,
    holds_messages,
    load_sources,
    mixture,
    require_columns,
    sources,
    text_column,
)
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import PreferencesConfig, QueryConfig, Recipe
from rlhf_lib.recipe import PromptsConfig as PromptSettings

if TYPE_CHECKING:
    from datasets import Dataset

OPENINGS = ("first_tokens", "first_words")
EXAMPLES = 5  # near duplicates in the report
# columns of the prompts' data sets that are ours, and keywords of reward functions: no set's own column passes for one
_OURS = {"query", "prompt", "prompts", "input_ids", "attention_mask", "messages", "completions", "completion_ids"}


@dataclass(frozen=True)
class Prompts:
    """Columns `query` (bare text, what the reward sees) and `prompt` (what the policy continues), the messages of
    conversations, and the set's other columns; no row in both, unless the recipe holds none out.

    With the query kinds first_tokens and first_words both still hold the whole text, which `prompt_tokens` cuts:
    openings of different texts often agree, and are no duplicates for it.
    """

    train: Dataset
    test: Dataset
    report: dict[str, Any]


def load_prompts(recipe: Recipe, loaded: Mapping[str, Dataset] | None = None, *, chat: bool = False) -> Prompts:
    """The recipe's prompts as text, with `chat` as conversations, in an order drawn with its seed.

    Dropped and counted: texts of `min_chars` characters or fewer, empty queries, queries of `max_query_chars`
    characters or more, duplicates, training prompts that are evaluation prompts too or nearly so, and those above
    `limit`. Without
    a test set of its own, the fraction `held_out` is taken off for evaluation; where that is 0, the evaluation prompts
    are the training prompts. Of several sets joined, training prompts are taken as often as their set's weight says.

    Args:
        loaded: the splits as `load_sources` opens them, where the caller has them already.

    Raises:
        DataError: missing set, split or column, a row that is not a dialogue, or a filter that leaves nothing.
    """
    settings = recipe.data.prompts
    loaded = loaded or load_sources(recipe, "prompts")
    described = {role: describe_source(source, default) for role, (source, default, _) in sources(recipe).items()}

    system = recipe.policy.system
    train, train_funnel, rows = _queries(loaded["prompts/train"], settings, described["prompts/train"], chat, system)
    sets = mixture(recipe, "prompts/train", loaded["prompts/train"], rows)
    train = _shuffled(train, recipe.seed, 1)
    if settings.test is None:
        train = _limited(train, settings.limit, train_funnel)
        if settings.unheld:
            test = train
        else:
            test, train = _hold_out(train, settings.held_out, described["prompts/train"])
            train_funnel.dropped["held out"] = len(test)
        test_report = {"rows": len(test), "dropped": {}, "kept": len(test)}
    else:
        where = described["prompts/test"]
        test, test_funnel, test_rows = _queries(loaded["prompts/test"], settings, where, chat, system)
        test = _shuffled(test, recipe.seed, 2)
        test_report = test_funnel.report(len(test))
        held_out = set(test)
        train = train_funnel.keep(
            "in test",
            train,
            (query not in held_out for query in train),
            "Training and evaluation share their prompts: point data.prompts.test at other rows, or set it to null; "
            "for a task that has no others, set data.prompts.held_out to 0 too",
        )
        train = _limited(train, settings.limit, train_funnel)
    train, similar = _drop_near_duplicates(train, test, settings, train_funnel)
    kept = train_funnel.report(len(train))
    train, taken = sets.take(train, train, recipe.seed)
    report = {"train": kept | taken, "test": test_report} | similar
    others = [_Others(recipe, loaded["prompts/train"], rows)]
    others.append(others[0] if settings.test is None else _Others(recipe, loaded["prompts/test"], test_rows))
    return Prompts(_dataset(train, settings, others[0]), _dataset(test, settings, others[1]), report)


def shared_with_pairs(prompts: Prompts, pair_prompts: Iterable[str], query: QueryConfig) -> int | None:
    """How many evaluation queries also occur in the pairs, so that a reward model trained on these knows them; None for
    openings of texts, which don't tell."""
    if query.kind in OPENINGS:
        return None
    asked = set(pair_prompts)
    if query.kind == "first_turn" and MESSAGES not in prompts.test.column_names:
        asked = {first_turn(prompt) for prompt in asked if prompt.startswith(HUMAN)}
    return sum(text in asked for text in prompts.test["query"])


def held_out_prompts(folder: str, recipe: Recipe) -> Dataset:
    """The evaluation's prompts: all in the folder, or `evaluation.prompts` of them drawn with the seed, since sets may
    be sorted. Where none are held out, a small set is asked as often as it fits into that number: each answer is drawn
    anew, and no other prompts would tell more."""
    return draw_prompts(load_from_disk(folder), recipe)


def draw_prompts(prompts: Dataset, recipe: Recipe) -> Dataset:
    """The same, from a data set in memory."""
    limit = recipe.evaluation.prompts
    if len(prompts) <= limit:
        times = limit // len(prompts) if recipe.data.prompts.unheld else 1
        return prompts.select(list(range(len(prompts))) * times) if times > 1 else prompts
    return prompts.shuffle(seed=recipe.seed, keep_in_memory=True).select(range(limit))


def _queries(
    dataset: Dataset, settings: PromptSettings, where: str, chat: bool, system: str | None
) -> tuple[list[str], Funnel, list[str]]:
    """(the queries that the filters keep, their counts, every row's query)."""
    funnel = Funnel(where, len(dataset))
    if holds_messages(dataset, settings.column):
        texts = conversations(dataset, settings.column, where)
    else:
        texts = text_column(dataset, settings.column, where, "data.prompts.column")
    rows = [(text, _query(text, row, settings, dataset, where)) for row, text in enumerate(texts)]
    if chat and settings.query.kind not in OPENINGS:  # these are cut first
        rows = [(text, Conversation.of(query, system) if query else "") for text, query in rows]
    every = [query for _, query in rows]
    if settings.min_chars is not None:
        least = settings.min_chars
        rows = funnel.keep("min_chars", rows, (len(text) > least for text, _ in rows), "Lower data.prompts.min_chars")
    queries = [query for _, query in rows]
    fix = f"Does column '{settings.column}' hold the texts? Set data.prompts.column"
    queries = funnel.keep("empty", queries, map(bool, queries), fix)
    if settings.max_query_chars is not None and settings.query.kind not in OPENINGS:
        most = settings.max_query_chars
        short = (len(query) < most for query in queries)
        queries = funnel.keep("max_query_chars", queries, short, "Raise data.prompts.max_query_chars")
    return funnel.keep("duplicate", queries, first_seen(queries), ""), funnel, every


def _query(text: str, row: int, settings: PromptSettings, dataset: Dataset, where: str) -> str:
    """The row's query; white space alone counts as empty."""
    kind = settings.query.kind
    if isinstance(text, Conversation):
        if kind in OPENINGS:
            raise DataError(
                f"{where}: column '{settings.column}' holds messages, and data.prompts.query.kind {kind} cuts texts: "
                "set it to text (the conversation up to its last answer) or first_turn"
            )
        asked = next((one["content"] for one in text.messages if one["role"] == "user"), "") if text else ""
        return asked if kind == "first_turn" else text if asked.strip() else ""
    try:
        match kind:
            case "first_turn":
                return first_turn(text)
            case "dialogue":
                return split_dialogue(text)[0]
            case _:
                return text if text.strip() else ""
    except DataError as error:
        raise DataError(
            f"{row_place(dataset, row, where)}, column '{settings.column}' {error}. "
            "For plain text set data.prompts.query.kind to text"
        ) from None


def draw_length(query: QueryConfig, seed: int, text: str) -> int:
    """How many tokens or words the text's query has: uniform in [min, max), by seed and text."""
    return random.Random(f"{seed}:{text}").randrange(query.min, query.max)


def first_words(text: str, query: QueryConfig, seed: int) -> tuple[str, str]:
    """(the text's first N words, the rest), words joined by spaces, and the rest with the one that joins them."""
    words = text.split()
    count = draw_length(query, seed, text)
    return " ".join(words[:count]), "".join(f" {word}" for word in words[count:])


def cut(text: str, query: QueryConfig, seed: int, key: str) -> tuple[str, str]:
    """(query, what follows it): a text as a prompt and its response, for models that read the two apart.

    Raises DataError for kinds of query that don't cut a text in two; `key` tells what to set instead."""
    match query.kind:
        case "first_words":
            return first_words(text, query, seed)
        case "dialogue":
            return split_dialogue(text)
    raise DataError(
        f"a seq2seq model reads a prompt and writes what follows, and data.prompts.query.kind {query.kind} doesn't cut "
        f"texts in two: {key}"
    )


def with_template(query: str, settings: PromptSettings) -> str:
    """The query inside the recipe's template."""
    # no str.format: templates may hold other braces
    return query if settings.template is None else settings.template.replace("{query}", query)


def _shuffled(queries: list[str], seed: int, stream: int) -> list[str]:
    return [queries[i] for i in np.random.default_rng([seed, stream]).permutation(len(queries))]


def _limited(queries: list[str], limit: int | None, funnel: Funnel) -> list[str]:
    if limit is not None:
        funnel.dropped["limit"] = max(0, len(queries) - limit)
    return queries[:limit]


def _hold_out(queries: list[str], fraction: float, where: str) -> tuple[list[str], list[str]]:
    """(held out, the rest). Raises DataError if either is empty."""
    count = round(len(queries) * fraction)
    if not 0 < count < len(queries):
        fix = "Raise it" if not count else "Lower it"
        if len(queries) < 2:
            fix = "Give it more prompts"
        raise DataError(
            f"{where}: data.prompts.held_out={fraction} of {len(queries)} prompts leaves {count} for evaluation and "
            f"{len(queries) - count} for training. {fix}, or name evaluation prompts in data.prompts.test; 0 evaluates "
            "on the training prompts"
        )
    return queries[:count], queries[count:]


def _drop_near_duplicates(
    train: list[str], test: list[str], settings: PromptSettings, funnel: Funnel
) -> tuple[list[str], dict[str, Any]]:
    """(the training prompts that are far enough from every evaluation prompt, the report's `near duplicates`: the most
    similar of the others)."""
    if settings.near_duplicates is None or settings.unheld:
        return train, {}
    found = near_duplicates(train, test, settings.near_duplicates)
    dropped = {one.train for one in found}
    fix = "Raise data.prompts.near_duplicates.threshold, or set data.prompts.near_duplicates to null"
    kept = funnel.keep(NEAR, train, (place not in dropped for place in range(len(train))), fix)
    shown = sorted(found, key=lambda one: -one.similarity)[:EXAMPLES]
    examples = [
        {"train": train[one.train], "test": test[one.test], "similarity": round(one.similarity, 3)} for one in shown
    ]
    return kept, {"near duplicates": examples} if examples else {}


class _Others:
    """The set's other columns of a query's row, the first that has it."""

    def __init__(self, recipe: Recipe, dataset: Dataset, rows: list[str]) -> None:
        self.dataset, self.names = dataset, other_columns(recipe, dataset)
        self.places = {query: row for row, query in reversed(list(enumerate(rows)))}

    def of(self, queries: list[str]) -> dict[str, list[Any]]:
        """By name, one value a query."""
        if not self.names:
            return {}
        chosen = self.dataset.select([self.places[query] for query in queries]).select_columns(self.names)
        plain = chosen.with_format(None)
        return {name: list(plain[name]) for name in self.names}


def other_columns(recipe: Recipe, dataset: Dataset) -> list[str]:
    """Those that data.prompts.columns names, or all that hold something else than messages, pairs and prompts."""
    settings, pairs = recipe.data.prompts, recipe.data.preferences or PreferencesConfig()
    if settings.columns is not None:
        require_columns(dataset, settings.columns, "data.prompts", "data.prompts.columns")
        if ours := _OURS & set(settings.columns):
            raise DataError(
                f"data.prompts.columns: {', '.join(sorted(ours))} can't be passed on: rename it in the data set"
            )
        return settings.columns
    known = {settings.column, pairs.chosen, pairs.rejected, *_OURS}
    passed = [name for name in dataset.column_names if name not in known and not name.startswith(SET)]
    return [name for name in passed if not holds_messages(dataset, name)]


def _dataset(queries: list[str], settings: PromptSettings, others: _Others) -> Dataset:
    from datasets import Dataset

    opening = settings.query.kind in OPENINGS
    prompts = [str(query) if opening else with_template(query, settings) for query in queries]
    return Dataset.from_dict(columns_of(queries, "query") | {"prompt": prompts} | others.of(queries))
