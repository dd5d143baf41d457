"""Training prompts that are nearly evaluation prompts: similarities by hand, and what the data report says."""

from __future__ import annotations

import random

import pytest

from rlhf_lib.data.losses import data_losses, table
from rlhf_lib.data.near_duplicates import NearDuplicate, jaccard, near_duplicates, shingles
from rlhf_lib.data.prompts import load_prompts
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import NearDuplicatesConfig
from tests.rlhf_lib.data.test_prompts import make

DEFAULT = NearDuplicatesConfig()


def text(seed: int, words: int = 60) -> list[str]:
    draw = random.Random(seed)
    return [f"word{draw.randrange(5000)}" for _ in range(words)]


def changed(words: list[str], places: list[int]) -> list[str]:
    return [f"other{i}" if i in places else word for i, word in enumerate(words)]


def said(words: list[str]) -> str:
    return " ".join(words)


def test_shingles_are_runs_of_words_whatever_the_case_and_the_marks():
    assert len(shingles("One two three four five six", 5)) == 2
    assert shingles("One, two; THREE four-five!", 2) == shingles("one two three four five", 2)
    assert shingles("one two three four", 5) == frozenset()


def test_similarity_is_shared_over_all():
    assert jaccard(frozenset({1, 2, 3}), frozenset({2, 3, 4})) == 0.5
    assert jaccard(frozenset(), frozenset()) == 0.0


def test_one_word_of_sixty_is_nearly_the_same_and_two_are_not():
    """56 shingles, of which a word in the middle changes 5: 51 / 61 = 0.84; two far apart: 46 / 66 = 0.70."""
    words = text(0)
    one, two = changed(words, [30]), changed(words, [20, 40])
    test = [said(text(1)), said(words)]
    found = near_duplicates([said(two), said(text(2)), said(one)], test, DEFAULT)
    assert found == [NearDuplicate(2, 1, pytest.approx(51 / 61))]
    lower = near_duplicates([said(two), said(one)], test, NearDuplicatesConfig(threshold=0.65))
    assert [(one.train, one.test) for one in lower] == [(0, 1), (1, 1)]


def test_short_prompts_are_let_be():
    """23 words have 19 shingles, one below the default; a word at the end changes one of them: 18 / 20 = 0.9."""
    words = text(0, 23)
    pair = [said([*words[:-1], "more"])], [said(words)]
    assert near_duplicates(*pair, DEFAULT) == []
    least = NearDuplicatesConfig(min_shingles=19)
    assert near_duplicates(*pair, least) == [NearDuplicate(0, 0, pytest.approx(18 / 20))]
    assert near_duplicates([], [], DEFAULT) == near_duplicates(["where is it"], ["where is it?"], DEFAULT) == []


def test_hashing_misses_next_to_none():
    """Of 100 texts with one word changed, similar by 0.84, among 300 others."""
    texts = [text(seed) for seed in range(400)]
    train = [said(changed(words, [30])) for words in texts[:100]] + [said(words) for words in texts[100:300]]
    found = near_duplicates(train, [said(words) for words in [*texts[:100], *texts[300:]]], DEFAULT)
    assert {one.train for one in found} <= set(range(100))
    assert all(one.train == one.test for one in found)
    assert len(found) >= 98


def test_they_are_dropped_from_the_training_prompts_and_shown(tmp_path):
    words = text(0)
    rows = [said(changed(words, [30])), said(text(1)) + " | ", said(text(2))]
    prompts = load_prompts(make(tmp_path, rows, [said(words), said(text(3))]))
    assert prompts.report["train"]["dropped"]["near duplicate"] == 1
    assert (len(prompts.train), len(prompts.test)) == (2, 2)
    assert prompts.report["near duplicates"] == [{"train": rows[0], "test": said(words), "similarity": 0.836}]
    report = {"prompts": prompts.report}
    assert [str(loss) for loss in data_losses(report)] == [
        "1 of 3 (33%) training prompts dropped: 1 nearly evaluation prompts"
    ]
    assert f"| 0.84 | {rows[0][:160]} | {said(words)[:160]} |" in table(report).splitlines()
    kept = load_prompts(make(tmp_path, rows, [said(words)], near_duplicates=None))
    assert len(kept.train) == 3
    assert "near duplicates" not in kept.report


def test_held_out_prompts_are_kept_apart_too(tmp_path):
    rows = [said(changed(text(seed), [place])) for seed in range(10) for place in (10, 50)]
    prompts = load_prompts(make(tmp_path, rows, held_out=0.2, near_duplicates={"threshold": 0.6}))
    assert len(prompts.test) == 4
    assert len(prompts.train) == 16 - prompts.report["train"]["dropped"]["near duplicate"]
    kinds = [{query.split()[0] for query in rows["query"]} for rows in (prompts.train, prompts.test)]
    assert not kinds[0] & kinds[1]


def test_nothing_left_names_the_key(tmp_path):
    words = text(0)
    with pytest.raises(DataError, match=r"'near duplicate' left none.*Raise data\.prompts\.near_duplicates\.threshold"):
        load_prompts(make(tmp_path, [said(changed(words, [30]))], [said(words)]))
