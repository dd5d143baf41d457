"""Prompts: rows of a data set turned into the queries that the policy continues, in two steps.

`load_prompts` works on text alone (filters, duplicates, held-out split, leakage); `tokenize_prompts` needs the policy's
tokenizer, which may itself still have to be trained on the text.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import load_from_disk

from rlhf_lib.data.dialogue import HUMAN, first_turn, split_dialogue
from rlhf_lib.data.joined import row_place
from rlhf_lib.data.losses import NEAR
from rlhf_lib.data.near_duplicates import near_duplicates
from rlhf_lib.data.sources import Funnel, describe_source, first_seen, load_sources, mixture, sources, text_column
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import PromptsConfig as PromptSettings
from rlhf_lib.recipe import QueryConfig, Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_OPENINGS = ("first_tokens", "first_words")
_BATCH = 1000
EXAMPLES = 5  # near duplicates in the report
_CHARS_PER_TOKEN = 32  # far above what tokenizers reach on average: saves encoding whole texts for a few tokens


@dataclass(frozen=True)
class Prompts:
    """Columns `query` (bare text, what the reward sees) and `prompt` (what the policy continues); no row in both,
    unless the recipe holds none out.

    With the query kinds first_tokens and first_words both still hold the whole text, which `tokenize_prompts` cuts:
    openings of different texts often agree, and are no duplicates for it.
    """

    train: Dataset
    test: Dataset
    report: dict[str, Any]


def load_prompts(recipe: Recipe, loaded: Mapping[str, Dataset] | None = None) -> Prompts:
    """The recipe's prompts as text, in an order drawn with its seed.

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

    train, train_funnel, rows = _queries(loaded["prompts/train"], settings, described["prompts/train"])
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
        test, test_funnel, _ = _queries(loaded["prompts/test"], settings, described["prompts/test"])
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
    return Prompts(_dataset(train, settings), _dataset(test, settings), report)


def tokenize_prompts(
    dataset: Dataset, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, positions: int
) -> tuple[Dataset, dict[str, int]]:
    """Adds `input_ids`; prompts that leave no room for the longest response within `positions` tokens are dropped.

    First_tokens: each row keeps its first N tokens as they were encoded, and the query is those tokens' text;
    first_words: its first N words, joined by spaces. N is uniform in [min, max) by the recipe's seed and the row's
    text, so that neither filters nor order change it. The template comes after the cut.

    Returns:
        (columns `query`, `prompt`, `input_ids`; counts: rows, too long, query too long, kept)

    Raises:
        DataError: no room for the response at all, or no prompt that leaves it.
    """
    from datasets import Dataset

    settings, room = recipe.data.prompts, positions - recipe.generation.response_limit
    if room < 1:
        raise DataError(
            f"responses of {recipe.generation.response_limit} tokens leave no room for a prompt within the model's "
            f"{positions} positions. Lower {recipe.generation.response_limit_key}"
        )
    rows: dict[str, list[Any]] = {"query": [], "prompt": [], "input_ids": []}
    long_queries = too_long = 0
    shortest = positions
    for start in range(0, len(dataset), _BATCH):
        batch = dataset[start : start + _BATCH]
        queries, prompts = batch["query"], batch["prompt"]
        ids = None
        if settings.query.kind == "first_tokens":
            cut = _first_tokens(queries, settings.query, recipe.seed, tokenizer)
            queries = tokenizer.batch_decode(cut, skip_special_tokens=True)
            ids = cut if settings.template is None else None
        elif settings.query.kind == "first_words":
            queries = [first_words(text, settings.query, recipe.seed)[0] for text in queries]
        if settings.query.kind in _OPENINGS:
            prompts = [with_template(query, settings) for query in queries]
        for query, prompt, input_ids in zip(
            queries, prompts, ids or tokenizer(prompts, verbose=False)["input_ids"], strict=True
        ):
            shortest = min(shortest, len(input_ids))
            if settings.max_query_chars is not None and len(query) >= settings.max_query_chars:
                long_queries += 1
            elif len(input_ids) > room:
                too_long += 1
            else:
                for column, value in zip(rows.values(), (query, prompt, input_ids), strict=True):
                    column.append(value)
    counts = {"rows": len(dataset), "query too long": long_queries, "too long": too_long, "kept": len(rows["query"])}
    if long_queries == len(dataset):
        raise DataError(
            f"none of the {len(dataset)} queries has fewer than {settings.max_query_chars} characters: "
            "raise data.prompts.max_query_chars"
        )
    if not rows["query"]:
        raise DataError(
            f"none of the {len(dataset)} prompts leaves room for a response of {recipe.generation.response_limit} "
            f"tokens within the model's {positions} positions (the shortest has {shortest} tokens). Shorten the "
            "prompts (data.prompts.query, .max_query_chars) or the responses "
            f"({recipe.generation.response_limit_key}), or take a model with more positions"
        )
    return Dataset.from_dict(rows), counts


def tokenize_splits(
    train: Dataset, test: Dataset, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, positions: int
) -> tuple[Dataset, Dataset, dict[str, dict[str, int]]]:
    """`tokenize_prompts` of both splits, no query in both, unless the recipe holds none out.

    Openings of different texts often agree in their first few tokens or words. Evaluation prompts that equal a training
    prompt are dropped and counted as `in train`: the training prompts keep the distribution that was asked for.

    Raises:
        DataError: as `tokenize_prompts`, or if every evaluation prompt is a training prompt too.
    """
    train, train_counts = tokenize_prompts(train, recipe, tokenizer, positions)
    test, test_counts = tokenize_prompts(test, recipe, tokenizer, positions)
    if recipe.data.prompts.unheld:
        return train, test, {"train": train_counts, "test": test_counts}
    seen = set(train["query"])
    unseen = [row for row, query in enumerate(test["query"]) if query not in seen]
    if not unseen:
        raise DataError(
            f"all {len(test)} evaluation prompts are training prompts too: raise data.prompts.query.min and .max so "
            "that fewer agree; for a task that has no other prompts, set data.prompts.held_out to 0 (and "
            "data.prompts.test to null), and the training prompts are evaluated on"
        )
    test_counts |= {"in train": len(test) - len(unseen), "kept": len(unseen)}
    return train, test.select(unseen), {"train": train_counts, "test": test_counts}


def shared_with_pairs(prompts: Prompts, pair_prompts: Iterable[str], query: QueryConfig) -> int | None:
    """How many evaluation queries also occur in the pairs, so that a reward model trained on these knows them; None for
    openings of texts, which don't tell."""
    if query.kind in _OPENINGS:
        return None
    asked = set(pair_prompts)
    if query.kind == "first_turn":
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


def _queries(dataset: Dataset, settings: PromptSettings, where: str) -> tuple[list[str], Funnel, list[str]]:
    """(the queries that the filters keep, their counts, every row's query)."""
    funnel = Funnel(where, len(dataset))
    texts = text_column(dataset, settings.column, where, "data.prompts.column")
    rows = [(text, _query(text, row, settings, dataset, where)) for row, text in enumerate(texts)]
    every = [query for _, query in rows]
    if settings.min_chars is not None:
        least = settings.min_chars
        rows = funnel.keep("min_chars", rows, (len(text) > least for text, _ in rows), "Lower data.prompts.min_chars")
    queries = [query for _, query in rows]
    fix = f"Does column '{settings.column}' hold the texts? Set data.prompts.column"
    queries = funnel.keep("empty", queries, map(bool, queries), fix)
    if settings.max_query_chars is not None and settings.query.kind not in _OPENINGS:
        most = settings.max_query_chars
        short = (len(query) < most for query in queries)
        queries = funnel.keep("max_query_chars", queries, short, "Raise data.prompts.max_query_chars")
    return funnel.keep("duplicate", queries, first_seen(queries), ""), funnel, every


def _query(text: str, row: int, settings: PromptSettings, dataset: Dataset, where: str) -> str:
    """The row's query; white space alone counts as empty."""
    try:
        match settings.query.kind:
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


def _first_tokens(
    texts: list[str], query: QueryConfig, seed: int, tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """Each text's first N tokens; special tokens that the tokenizer adds (BOS, T5's EOS) stay and aren't counted."""
    openings = [text[: query.max * _CHARS_PER_TOKEN] for text in texts]
    encoded = tokenizer(openings, return_special_tokens_mask=True, verbose=False)
    cut = []
    for text, ids, special in zip(texts, encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        limit = draw_length(query, seed, text)
        place = accumulate(1 - mark for mark in special)  # a token's number among the text's own
        cut.append([token for token, own, mark in zip(ids, place, special, strict=True) if mark or own <= limit])
    return cut


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


def _dataset(queries: list[str], settings: PromptSettings) -> Dataset:
    from datasets import Dataset

    opening = settings.query.kind in _OPENINGS
    prompts = queries if opening else [with_template(query, settings) for query in queries]
    return Dataset.from_dict({"query": queries, "prompt": prompts})
