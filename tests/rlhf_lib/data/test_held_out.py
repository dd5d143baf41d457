"""Pairs shared out between the reward model and the judges."""

from __future__ import annotations

import pytest
from datasets import Dataset

from rlhf_lib.data.held_out import share_out
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import load_recipe

PAIRS = Dataset.from_dict(
    {
        "prompt": [f"q{i % 500}" for i in range(1000)],
        "chosen": [f"a{i}" for i in range(1000)],
        "rejected": ["b"] * 1000,
    }
)


def recipe(**shares: float):
    judges = [f"evaluation.judges.{name}={{pairs: held_out, share: {share}}}" for name, share in shares.items()]
    return load_recipe("embedded", judges)


def test_without_such_judges_the_reward_model_gets_every_pair():
    left, shares = share_out(recipe(), PAIRS)
    assert left.to_dict() == PAIRS.to_dict()
    assert shares == {}


def test_parts_are_disjoint_by_prompt_and_as_large_as_asked():
    left, shares = share_out(recipe(first=0.5, second=0.2), PAIRS)
    parts = [left, shares["first"], shares["second"]]
    assert sorted(answer for part in parts for answer in part["chosen"]) == sorted(PAIRS["chosen"])
    prompts = [set(part["prompt"]) for part in parts]
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == 500
    # 500 draws: a share is known to 2.2 points, and three of these are allowed
    assert [len(part) / 1000 for part in parts] == pytest.approx([0.3, 0.5, 0.2], abs=0.067)


def test_a_prompt_keeps_its_part_as_pairs_are_added():
    left, _ = share_out(recipe(judge=0.5), PAIRS.select(range(300)))
    more, _ = share_out(recipe(judge=0.5), PAIRS)
    assert set(left["prompt"]) == set(more["prompt"]) & {f"q{i}" for i in range(300)}


def test_a_part_without_pairs_is_refused():
    with pytest.raises(DataError, match="sharing 1 prompts out left none for"):
        share_out(recipe(judge=0.5), PAIRS.select([0]))
