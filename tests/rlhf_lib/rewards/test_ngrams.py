"""The n-gram baseline: its features by hand, and what it learns."""

from __future__ import annotations

import numpy as np

from rlhf_lib.rewards.ngrams import FEATURES, fit_ngrams, ngrams


def test_features_are_the_different_2_to_4_grams_with_the_ends() -> None:
    # < a b > : 3 bigrams, 2 trigrams, 1 four-gram; < a >: 2 and 1; of nothing, the one bigram < >
    held = ngrams([" A b", "a", "", "a b a b a b"])
    assert held.shape == (4, FEATURES)
    # < a b a b a b >: <a ab ba b>; <ab aba bab ab>; <aba abab baba bab>
    assert held.sum(axis=1).ravel().tolist() == [[6, 3, 1, 12]]
    assert held.max() == 1
    assert (held[0] != ngrams(["a B"])[0]).nnz == 0  # case doesn't matter
    assert held[0].multiply(ngrams(["b a"])[0]).nnz == 0  # order does


def test_it_learns_wording_and_never_sees_the_prompt() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(20)]

    def pairs(count: int) -> list[tuple[str, str, str]]:
        filler = [" ".join(rng.choice(words, 6)) for _ in range(2 * count)]
        return [(f"p{i}", f" {filler[2 * i]} will do", f" {filler[2 * i + 1]} do will") for i in range(count)]

    model = fit_ngrams(pairs(300))
    held_out = pairs(100)
    chosen = model([prompt for prompt, _, _ in held_out], [pair[1] for pair in held_out])
    rejected = model(["another"] * 100, [pair[2] for pair in held_out])
    assert all(better > worse for better, worse in zip(chosen, rejected, strict=True))
    swapped = fit_ngrams([(prompt, rejected, chosen) for prompt, chosen, rejected in pairs(300)])
    assert np.corrcoef(chosen, swapped([""] * 100, [pair[1] for pair in held_out]))[0, 1] < 0
    assert fit_ngrams([("p", " same", " same")])([""], [" same"]) == [0.0]  # nothing to learn
