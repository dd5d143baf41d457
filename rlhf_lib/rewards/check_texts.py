"""The texts that a reward is checked on: held-out ones, and degenerate ones that no policy should be drawn to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from rlhf_lib.errors import DataError
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
    """At most `limit` (query, response) texts for a reward that has no preference pairs to be checked on.

    They come from the rows that the prompts come from, evaluation's where it has its own: of a dialogue the answer, of
    a plain text the words that follow the query, from 4 to as many as the policy may generate tokens. Where no row goes
    on after its query (see `has_answers`), its second half stands for the response to its first. Neither is ever blank.
    Raises DataError where all rows are.
    """
    texts = _texts(recipe, limit, split_text) or _texts(recipe, limit, lambda text, *_: _halves(text))
    if not texts:
        column = recipe.data.prompts.column
        raise DataError(f"column '{column}' has no text to try the reward on: set data.prompts.column to one that has")
    return texts


def has_answers(recipe: Recipe) -> bool:
    """Whether the prompts' rows go on after their query, so that there are real responses to check a reward on."""
    return recipe.data.prompts.query.kind != "text" and bool(_texts(recipe, 1, split_text))


Split = Callable[[str, Recipe, np.random.Generator], tuple[str, str]]


def _texts(recipe: Recipe, limit: int, split: Split) -> list[tuple[str, str]]:
    from rlhf_lib.data.sources import describe_source, load_split, text_column

    prompts = recipe.data.prompts
    source = prompts.test or prompts
    where = describe_source(source, prompts.dataset)
    rows = load_split(source, default=prompts.dataset)
    text_column(rows.select(range(0)), prompts.column, where, "data.prompts.column")  # raises for what isn't text
    rows = rows.select_columns([prompts.column]).with_format(None)
    rng = np.random.default_rng(recipe.seed)
    texts: list[tuple[str, str]] = []
    for i in rng.permutation(len(rows)):
        text = rows[int(i)][prompts.column] or ""
        if len(text) > (prompts.min_chars or 0):
            query, response = split(text, recipe, rng)
            if query.strip() and response.strip():
                texts.append((query, response))
        if len(texts) == limit:
            break
    return texts


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
