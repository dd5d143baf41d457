"""The published collections themselves: hh-rlhf and IMDB, from the folder RLHF_TEST_ASSETS."""

import os
from pathlib import Path

import pytest
from datasets import load_dataset

from rlhf_lib.data.dialogue import first_turn, split_dialogue
from rlhf_lib.data.preferences import load_preferences
from rlhf_lib.data.prompt_tokens import tokenize_splits
from rlhf_lib.data.prompts import load_prompts
from rlhf_lib.data.sources import load_split
from rlhf_lib.errors import DataError
from rlhf_lib.models.loading import load_tokenizer
from rlhf_lib.recipe import Recipe, SourceConfig

ASSETS = Path(os.environ.get("RLHF_TEST_ASSETS", "/nonexistent"))
pytestmark = pytest.mark.skipif(
    not (ASSETS / "data/hh-rlhf").is_dir(), reason="RLHF_TEST_ASSETS doesn't name a folder with data/hh-rlhf"
)

HH, IMDB = str(ASSETS / "data/hh-rlhf"), str(ASSETS / "data/imdb")
HELPFUL = {
    "prompts": {
        "dataset": HH,
        "data_dir": "helpful-rejection-sampled",
        "split": "test",
        "column": "chosen",
        "test": {"data_dir": "helpful-base"},
    },
    "preferences": {
        "train": {"data_dir": "helpful-rejection-sampled", "split": "test"},
        "test": {"data_dir": "helpful-base"},
    },
}


def make(data: dict, **prompts) -> Recipe:
    recipe = {
        "name": "x",
        "data": data | {"prompts": data["prompts"] | prompts},
        "policy": {"model": "gpt2"},
        "reward": {"kind": "function", "function": "a:b"},
    }
    return Recipe.model_validate(recipe)


@pytest.mark.parametrize("subset", ["helpful-base", "helpful-rejection-sampled", "harmless-base"])
def test_every_dialogue_parses_and_agrees_with_the_published_code(subset: str) -> None:
    for row in load_dataset(HH, data_dir=subset, split="test"):
        for text in row.values():
            prompt, answer = split_dialogue(text)
            assert text.rstrip() == (prompt + answer).rstrip()
            assert prompt.endswith("\n\nAssistant:")
            assert "\n\nAssistant:" not in answer
            published = text[len("\n\nHuman: ") : text.find("Assistant:")].replace("\n", " ").strip()
            assert first_turn(text) == published


def test_pairs_and_what_is_dropped() -> None:
    pairs = load_preferences(make(HELPFUL))
    assert pairs.report == {
        "train": {
            "rows": 2749,
            "dropped": {
                "prompts differ": 3,
                "empty answer": 0,
                "identical answers": 32,
                "repeated pair": 0,
                "prompt in test": 0,
            },
            "kept": 2714,
        },
        "test": {
            "rows": 2354,
            "dropped": {"prompts differ": 9, "empty answer": 4, "identical answers": 2, "repeated pair": 0},
            "kept": 2339,
        },
    }
    assert all(answer.startswith(" ") for answer in pairs.train["chosen"])


def test_the_tutorials_prompts() -> None:
    prompts = load_prompts(make(HELPFUL, query={"kind": "first_turn"}, max_query_chars=100))
    dropped = {"empty": 0, "max_query_chars": 453, "duplicate": 117, "in test": 3, "near duplicate": 0}
    assert prompts.report["train"]["dropped"] == dropped
    assert len(prompts.train) == 2176
    assert max(map(len, prompts.train["query"])) == 99
    assert not set(prompts.train["query"]) & set(prompts.test["query"])


def test_reviews_are_no_dialogues() -> None:
    with pytest.raises(
        DataError, match=r"row 0, column 'text' is not a dialogue: it begins .* data\.prompts\.query\.kind to text"
    ):
        load_prompts(make({"prompts": {"dataset": IMDB, "split": "train[:10]"}}, query={"kind": "dialogue"}))


def test_texts_in_both_splits_of_imdb_are_dropped_from_training() -> None:
    prompts = load_prompts(
        make({"prompts": {"dataset": IMDB}}, min_chars=200, test={"split": "test"}, near_duplicates=None)
    )
    assert prompts.report["train"]["dropped"]["in test"] == 123
    assert min(map(len, prompts.train["query"])) == 201


def test_imdb_openings_are_the_reviews_first_tokens() -> None:
    model = ASSETS / "models/gpt2-imdb-mini"
    if not model.is_dir():
        pytest.skip(f"no {model}")
    tokenizer = load_tokenizer(str(model))
    recipe = make(
        {"prompts": {"dataset": IMDB, "split": "train[:1500]"}}, min_chars=200, query={"kind": "first_tokens"}
    )
    prompts = load_prompts(recipe)
    train, test, counts = tokenize_splits(prompts.train, prompts.test, recipe, tokenizer, 256)
    whole = tokenizer(prompts.train["query"][:], verbose=False)["input_ids"]
    for row, ids in zip(train, whole, strict=True):
        assert 2 <= len(row["input_ids"]) < 8
        assert row["input_ids"] == ids[: len(row["input_ids"])]
        assert row["query"] == row["prompt"] == tokenizer.decode(row["input_ids"])
    assert {len(ids) for ids in train["input_ids"]} == set(range(2, 8))
    assert not set(train["query"]) & set(test["query"])
    assert counts["test"]["in train"] == len(prompts.test) - len(test) > 0


def test_single_files_and_lists() -> None:
    assert len(load_split(SourceConfig(dataset=f"{HH}/helpful-base/test.jsonl.gz", split="test[:7]"))) == 7
    assert len(load_split(SourceConfig(dataset=str(ASSETS / "data/pandalm/testset-v1.json")))) == 999
