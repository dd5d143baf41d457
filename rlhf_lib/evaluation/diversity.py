"""How varied responses are: a policy that collapses says the same thing to everybody, or the same thing twice."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-cased words and punctuation marks: the same units whatever the model's tokenizer."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order; none where there are fewer than n."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def distinct(texts: Sequence[str], n: int) -> float:
    """distinct-n of Li et al. 2016 ("A diversity-promoting objective function"): number of different n-grams in all the
    texts together over their number of words.

    It falls as texts are added, so compare sets of as many responses only. 0 where there isn't a word.
    """
    tokenized = [words(text) for text in texts]
    total = sum(map(len, tokenized))
    return len({gram for tokens in tokenized for gram in ngrams(tokens, n)}) / total if total else 0.0


def repetition(texts: Sequence[str], n: int = 2) -> float | None:
    """Mean over texts of 1 - different n-grams / n-grams (seq-rep-n of Welleck et al. 2020, "Neural text generation
    with unlikelihood training"), by words.

    Bigrams by default, for responses here may have a dozen words. None where no text has n words.
    """
    shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := ngrams(words(text), n))]
    return sum(shares) / len(shares) if shares else None
