"""The texts that a reward is checked on: held-out ones, and degenerate ones that no policy should be drawn to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_lib.conversation import Conversation, Message, Transcript
from rlhf_lib.errors import DataError, ModelError
from rlhf_lib.recipe import Recipe
from rlhf_lib.rewards.check_measures import Scores

SHARED_BY = 3  # responses that make a text a phrase
OVER_LONG_WORDS = 2000  # above 2,048 tokens, the positions of most small models


def repeated_word(response: str, rng: np.random.Generator) -> str:
    """One word of the response, as many times as the response has words: what a collapsed policy writes."""
    words = response.split()
    return " " + " ".join([words[rng.integers(len(words))]] * len(words)) if words else response


def shuffled_words(response: str, rng: np.random.Generator) -> str:
    """The response's own words in another order, if there is one."""
    words = response.split()
    if len(set(words)) < 2:
        return response
    shuffled = words
    while shuffled == words:
        shuffled = [words[i] for i in rng.permutation(len(words))]
    return " " + " ".join(shuffled)


def over_long(response: str) -> str:
    """The response repeated up to at least `OVER_LONG_WORDS` words."""
    return response * (OVER_LONG_WORDS // max(1, len(response.split())) + 1)


def other_prompts(prompts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """For each prompt (N,) one that differs from it, drawn from the same: (N,). Needs two different ones."""
    order = rng.permutation(len(prompts))
    others = list(prompts)
    for at, i in enumerate(order):
        following = (prompts[order[(at + step) % len(order)]] for step in range(1, len(order)))
        others[i] = next(other for other in following if other != prompts[i])
    return others


def well_paid_phrases(responses: Sequence[str], scores_N: Scores, most: int) -> list[str]:
    """Sentences and 4-grams that at least `SHARED_BY` responses hold, those whose responses score highest on average
    first; half of the `most` are sentences, where there are enough."""
    totals: dict[tuple[bool, str], list[float]] = {}
    for response, score in zip(responses, scores_N.tolist(), strict=True):
        words = response.split()
        sentences = {s for s in re.split(r"(?<=[.!?])\s+", response.strip()) if len(s.split()) > 2}
        grams = {" ".join(words[i : i + 4]) for i in range(len(words) - 3)}
        for phrase in [*((True, s) for s in sorted(sentences)), *((False, g) for g in sorted(grams))]:
            totals.setdefault(phrase, []).append(score)
    shared = {phrase: np.mean(found) for phrase, found in totals.items() if len(found) >= SHARED_BY}
    ordered = sorted(shared, key=lambda phrase: (-shared[phrase], phrase))
    best = [text for whole, text in ordered if whole][: most // 2]
    return [*best, *[text for whole, text in ordered if not whole][: most - len(best)]]


def real_texts(recipe: Recipe, limit: int) -> list[tuple[str, str]]:
    """The texts of `real_rows`."""
    return real_rows(recipe, limit)[0]


def real_rows(recipe: Recipe, limit: int) -> tuple[list[tuple[str, str]], dict[str, list[Any]]]:
    """At most `limit` (query, response) texts for a reward that has no preference pairs to be checked on, and their
    rows' other columns, a value each.

    They come from the rows that the prompts come from, evaluation's where it has its own: of a dialogue or of messages
    the last answer, of a plain text the words that follow the query, from 4 to as many as the policy may generate
    tokens. Where no row goes on after its query (see `has_answers`), its second half stands for the response to its
    first. Neither is ever blank. Queries are conversations where the policy is asked in them.
    Raises DataError where all rows are blank.
    """
    texts, columns = _texts(recipe, limit)
    if not texts:
        texts, columns = _texts(recipe, limit, halves=True)
    if not texts:
        column = recipe.data.prompts.column
        raise DataError(f"column '{column}' has no text to try the reward on: set data.prompts.column to one that has")
    if _asks_in_conversations(recipe):
        texts = [(Conversation.of(query, recipe.policy.system), response) for query, response in texts]
    return texts, columns


def _asks_in_conversations(recipe: Recipe) -> bool:
    from rlhf_lib.models.chat import asks_in_conversations

    try:
        return asks_in_conversations(recipe.policy)
    except ModelError:  # told where the policy is looked for
        return False


def has_answers(recipe: Recipe) -> bool:
    """Whether the prompts' rows go on after their query, so that there are real responses to check a reward on."""
    return bool(_texts(recipe, 1)[0])


def _texts(recipe: Recipe, limit: int, *, halves: bool = False) -> tuple[list[tuple[str, str]], dict[str, list[Any]]]:
    from rlhf_lib.data.prompts import other_columns
    from rlhf_lib.data.sources import describe_source, holds_messages, load_split, text_column

    prompts = recipe.data.prompts
    source = prompts.test or prompts
    where = describe_source(source, prompts.dataset)
    rows = load_split(source, default=prompts.dataset)
    spoken = holds_messages(rows, prompts.column)
    if not spoken:
        text_column(rows.select(range(0)), prompts.column, where, "data.prompts.column")  # raises for what isn't text
        if prompts.query.kind == "text" and not halves:
            return [], {}
    names = other_columns(recipe, rows)
    rows = rows.select_columns([prompts.column, *names]).with_format(None)
    rng = np.random.default_rng(recipe.seed)
    texts: list[tuple[str, str]] = []
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for i in rng.permutation(len(rows)):
        row = rows[int(i)]
        value: Any = row[prompts.column] or ""
        if len(Transcript(value) if spoken and value else value) > (prompts.min_chars or 0):
            if spoken:
                query, response = _split_messages(value, prompts.query.kind, halves=halves)
            else:
                query, response = _halves(value) if halves else split_text(value, recipe, rng)
            if query.strip() and response.strip():
                texts.append((query, response))
                for name in names:
                    columns[name].append(row[name])
        if len(texts) == limit:
            break
    return texts, columns


def _split_messages(messages: list[Message], kind: str, *, halves: bool) -> tuple[str, str]:
    """(the conversation up to its last answer, that answer), or of a `first_turn` the first message of the user's and
    its answer; a blank answer where there is none. With `halves` the last message asked is cut in two instead."""
    end = next((i for i in reversed(range(len(messages))) if messages[i]["role"] != "assistant"), -1)
    if kind == "first_turn":
        end = next((i for i, message in enumerate(messages) if message["role"] == "user"), -1)
    if end < 0:
        return "", ""
    answer = next((message["content"] for message in messages[end + 1 : end + 2] if message["role"] == "assistant"), "")
    asked = messages[end]["content"]
    if halves:
        asked, answer = _halves(asked)
    if kind == "first_turn":
        return asked, answer
    return Conversation([*messages[:end], {**messages[end], "content": asked}]), answer


def split_text(text: str, recipe: Recipe, rng: np.random.Generator) -> tuple[str, str]:
    """(query, response) of one row, as this recipe's reward would see them. Raises DataError if it isn't a dialogue."""
    from rlhf_lib.data.dialogue import first_turn, split_dialogue

    query = recipe.data.prompts.query
    if query.kind == "dialogue":
        return split_dialogue(text)
    if query.kind == "first_turn":
        return first_turn(text), text.partition("\n\nAssistant:")[2].partition("\n\nHuman:")[0]
    if query.kind == "text":
        return _halves(text)
    longest = recipe.generation.response_limit
    words = text.split()
    at, length = query.max - 1, int(rng.integers(min(4, longest), longest + 1))
    return " ".join(words[:at]), " " + " ".join(words[at : at + length])


def _halves(text: str) -> tuple[str, str]:
    """The text cut before its middle word, white space going with the second half; a single word is both."""
    gaps = [gap.start() for gap in re.finditer(r"(?<=\S)\s+(?=\S)", text)]
    if not gaps:
        return text, f" {text.strip()}" if text.strip() else ""
    at = gaps[len(gaps) // 2]
    return text[:at], text[at:]
