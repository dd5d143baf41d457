"""Prompts in the tokens of the policy's tokenizer, which may itself have had to be trained on the text first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from rlhf_lib.conversation import Conversation, columns_of, prompts_of
from rlhf_lib.data.prompts import OPENINGS, draw_length, first_words, with_template
from rlhf_lib.errors import DataError, RecipeError
from rlhf_lib.models.chat import prompt_ids, prompt_text
from rlhf_lib.recipe import QueryConfig, Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_BATCH = 1000
_CHARS_PER_TOKEN = 32  # far above what tokenizers reach on average: saves encoding whole texts for a few tokens


def tokenize_prompts(
    dataset: Dataset, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, positions: int
) -> tuple[Dataset, dict[str, int]]:
    """Adds `input_ids`; prompts that leave no room for the longest response within `positions` tokens are dropped.

    First_tokens: each row keeps its first N tokens as they were encoded, and the query is those tokens' text;
    first_words: its first N words, joined by spaces. N is uniform in [min, max) by the recipe's seed and the row's
    text, so that neither filters nor order change it. The template comes after the cut.

    With a tokenizer that has a chat template every query is a conversation, rendered in it.

    Returns:
        (columns `query`, `prompt`, `input_ids`, and those that there were; counts: rows, too long, query too long,
        kept)

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
    kept: list[int] = []
    long_queries = too_long = 0
    shortest = positions
    for start in range(0, len(dataset), _BATCH):
        batch = dataset.select(range(start, min(start + _BATCH, len(dataset))))
        for number, (query, prompt, ids) in enumerate(_tokenized(batch, recipe, tokenizer), start=start):
            shortest = min(shortest, len(ids))
            if settings.max_query_chars is not None and len(query) >= settings.max_query_chars:
                long_queries += 1
            elif len(ids) > room:
                too_long += 1
            else:
                kept.append(number)
                for column, value in zip(rows.values(), (query, prompt, ids), strict=True):
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
    columns = columns_of(rows["query"], "query") | {"prompt": rows["prompt"], "input_ids": rows["input_ids"]}
    others = dataset.select(kept).with_format(None)
    columns |= {name: list(others[name]) for name in dataset.column_names if name not in columns}
    return Dataset.from_dict(columns), counts


def _tokenized(
    batch: Dataset, recipe: Recipe, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, str, list[int]]]:
    """(query, prompt as the policy sees it, its tokens) of each row."""
    settings = recipe.data.prompts
    if tokenizer.chat_template is not None and settings.template is not None:
        raise RecipeError(
            "data.prompts.template puts text around plain prompts, and a chat model has a template of its own: set it "
            "to null, and say in policy.system what holds for every conversation"
        )
    queries, prompts, ids = prompts_of(batch, "query"), list(batch["prompt"]), None
    if settings.query.kind == "first_tokens":
        cut = _first_tokens(queries, settings.query, recipe.seed, tokenizer)
        queries = tokenizer.batch_decode(cut, skip_special_tokens=True)
        ids = cut if settings.template is None else None
    elif settings.query.kind == "first_words":
        queries = [first_words(text, settings.query, recipe.seed)[0] for text in queries]
    if tokenizer.chat_template is not None:
        asked = [Conversation.of(query, recipe.policy.system) for query in queries]
        prompts, ids = [prompt_text(tokenizer, one) for one in asked], prompt_ids(tokenizer, asked)
        queries = list(asked)
    elif settings.query.kind in OPENINGS:
        prompts = [with_template(query, settings) for query in queries]
    yield from zip(queries, prompts, ids or tokenizer(prompts, verbose=False)["input_ids"], strict=True)


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
