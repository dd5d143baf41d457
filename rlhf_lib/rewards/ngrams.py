"""What can be told from the wording of answers alone: a linear preference model on their n-grams.

It never sees the prompt, so a reward that orders held-out pairs no better has learned nothing about what was asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit

LENGTHS = (2, 3, 4)  # words in an n-gram
FEATURES = 2**18  # n-grams are hashed into so many
MOST_PAIRS = 10_000
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(46)  # keeps the 18 upper bits


@dataclass(frozen=True)
class NgramModel:
    """A reward: the sum of the weights (D,) of the n-grams that a response holds. Higher: more like chosen answers."""

    weights_D: NDArray[np.float64]

    def __call__(self, queries: Sequence[str], responses: Sequence[str]) -> list[float]:
        return (ngrams(responses) @ self.weights_D).tolist()


def fit_ngrams(pairs: Sequence[tuple[str, str, str]]) -> NgramModel:
    """Logistic regression on the difference of a pair's features, chosen - rejected (Bradley and Terry 1952), with
    unit ridge; of (prompt, chosen, rejected), the first `MOST_PAIRS`."""
    pairs = pairs[:MOST_PAIRS]
    difference_ND = ngrams([chosen for _, chosen, _ in pairs]) - ngrams([rejected for _, _, rejected in pairs])
    used = np.unique(difference_ND.indices)
    features_NU = difference_ND.tocsc()[:, used].tocsr()

    def loss(weights_U: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin_N = features_NU @ weights_U
        value = np.logaddexp(0, -margin_N).sum() + weights_U @ weights_U / 2
        return float(value), weights_U - features_NU.T @ expit(-margin_N)

    found = minimize(loss, np.zeros(used.size), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    weights_D = np.zeros(FEATURES)
    weights_D[used] = found.x
    return NgramModel(weights_D)


def ngrams(texts: Sequence[str]) -> csr_matrix:
    """Which n-grams each text holds, its ends among the words: (N, FEATURES) of 0 and 1."""
    rows = [_hashed(text) for text in texts]
    starts_N = np.cumsum([0, *(row.size for row in rows)])
    columns = np.concatenate([*rows, np.empty(0, dtype=np.int64)])
    return csr_matrix((np.ones(columns.size), columns, starts_N), shape=(len(texts), FEATURES))


def _hashed(text: str) -> NDArray[np.int64]:
    words = ["<", *re.findall(r"\w+|[^\w\s]", text.lower()), ">"]
    word_L = np.array([crc32(word.encode()) for word in words], dtype=np.uint64)
    found = []
    for length in LENGTHS:
        if length > word_L.size:
            break
        windows = np.lib.stride_tricks.sliding_window_view(word_L, length)
        hashed = np.full(len(windows), length, dtype=np.uint64)
        for column in windows.T:
            hashed = (hashed ^ column) * _MIX
            hashed ^= hashed >> np.uint64(29)
        found.append(hashed * _MIX >> _SHIFT)
    return np.unique(np.concatenate(found)).astype(np.int64)
