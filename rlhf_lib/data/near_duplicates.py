"""Training prompts that are nearly evaluation prompts: a word changed, a sentence added.

Two texts are as similar as their sets of shingles, runs of `words` words, are by Jaccard: shared over all (Broder 1997,
"On the resemblance and containment of documents"). MinHash with locality-sensitive hashing (datasketch) finds the
candidates, and their similarity is then counted exactly, so nothing is dropped by the hash's chance. Runs of 5 words
and 0.8 are those of Lee et al. 2022, "Deduplicating training data makes language models better".

One word changed inside a text of n shingles takes 5 of them away and adds 5: the similarity is (n - 5) / (n + 5), which
reaches 0.8 at n = 45. So 0.8 means a long text with hardly a change, or a shorter one with a changed end.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from rlhf_lib.recipe import NearDuplicatesConfig

HASHES = 128  # of a MinHash
_MISSED = 0.99  # weight of a missed pair against that of a needless candidate: those are only counted

_WORD = re.compile(r"\w+")
Shingles = frozenset[int]


@dataclass(frozen=True)
class NearDuplicate:
    """A training prompt and the most similar evaluation prompt, by their places."""

    train: int
    test: int
    similarity: float


def shingles(text: str, words: int) -> Shingles:
    """The different runs of so many lower-cased words, hashed to 32 bits; none for a shorter text."""
    found = _WORD.findall(text.lower())
    return frozenset(crc32(" ".join(found[i : i + words]).encode()) for i in range(len(found) - words + 1))


def jaccard(one: Shingles, other: Shingles) -> float:
    """Shared shingles over all; 0 for two empty sets."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if shared else 0.0


def near_duplicates(train: Sequence[str], test: Sequence[str], settings: NearDuplicatesConfig) -> list[NearDuplicate]:
    """The training prompts whose similarity to an evaluation prompt is `settings.threshold` or more, both having
    `settings.min_shingles` shingles at least. In the order of the training prompts."""
    from datasketch import MinHash, MinHashLSH

    threshold = settings.threshold
    asked, offered = _grouped(test, settings), _grouped(train, settings)
    known = frozenset[int]().union(*asked)
    # where the similarity is t, at least t of a text's shingles are shared: of most texts next to none are
    texts = [text for text in offered if len(text & known) >= threshold * len(text)]
    if not texts:
        return []
    index = MinHashLSH(threshold=threshold, num_perm=HASHES, weights=(1 - _MISSED, _MISSED))
    for key, hashed in zip(asked, MinHash.generator(asked, num_perm=HASHES, hashfunc=int), strict=True):
        index.insert(key, hashed)
    found = []
    for text, hashed in zip(texts, MinHash.generator(texts, num_perm=HASHES, hashfunc=int), strict=True):
        similar = [(jaccard(text, other), -asked[other][0], other) for other in index.query(hashed)]
        if similar and (best := max(similar, key=lambda one: one[:2]))[0] >= threshold:
            found += [NearDuplicate(place, asked[best[2]][0], best[0]) for place in offered[text]]
    return sorted(found, key=lambda one: one.train)


def _grouped(texts: Iterable[str], settings: NearDuplicatesConfig) -> dict[Shingles, list[int]]:
    """The places of the texts with the same shingles, where these are enough to tell by."""
    places: dict[Shingles, list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        found = shingles(text, settings.words)
        if len(found) >= settings.min_shingles:
            places[found].append(place)
    return dict(places)
