"""Prompts: filters with their counts, held-out split, leakage, openings, room for the response."""

import json
import random

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlhf_lib.data.prompt_tokens import tokenize_prompts, tokenize_splits
from rlhf_lib.data.prompts import (
    Prompts,
    draw_prompts,
    load_prompts,
    shared_with_pairs,
)
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import GenerationConfig, QueryConfig, Recipe

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make(tmp_path, rows: list[str], test: list[str] | None = None, seed: int = 0, generation=None, **prompts) -> Recipe:
    files = {}
    for name, texts in (("train", rows), ("test", test or [])):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    held_out = {"test": {"dataset": str(files["test"])}} if test is not None else {}
    recipe = {
        "name": "x",
        "data": {"prompts": {"dataset": str(files["train"])} | held_out | prompts},
        "policy": {"model": "gpt2"},
        "reward": {"kind": "function", "function": "a:b"},
        "generation": generation or {"max_new_tokens": 4},
        "seed": seed,
    }
    return Recipe.model_validate(recipe)


def load(*args, **kwargs) -> Prompts:
    return load_prompts(make(*args, **kwargs))


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word: the letters are 0-25, then what the template needs, then BOS."""
    words = [*LETTERS, "Q:", "A:", "[UNK]", "<s>"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", eos_token="<s>")


# ------------------------------------------------------------ text


def test_filters_are_counted_in_their_order(tmp_path) -> None:
    rows = ["xx", "xxx", "   ", "    ", "four", "four", "seven77", "eight888", "nine99999", "leaked"]
    prompts = load(tmp_path, rows, ["leaked", "other"], min_chars=3, max_query_chars=9)
    assert prompts.report["train"] == {
        "rows": 10,
        # strictly more than 3 characters and fewer than 9
        "dropped": {
            "min_chars": 3,
            "empty": 1,
            "max_query_chars": 1,
            "duplicate": 1,
            "in test": 1,
            "near duplicate": 0,
        },
        "kept": 3,
    }
    assert sorted(prompts.train["query"]) == ["eight888", "four", "seven77"]
    assert sorted(prompts.test["query"]) == ["leaked", "other"]


@pytest.mark.parametrize("limit", [None, 20])
def test_held_out_prompts_are_drawn_with_the_seed(tmp_path, limit: int | None) -> None:
    rows = [f"prompt {i}" for i in range(60)] + ["prompt 0"] * 5
    first, again, other = (load(tmp_path, rows, seed=seed, held_out=0.25, limit=limit) for seed in (0, 0, 1))
    size = limit or 60
    assert (len(first.train), len(first.test)) == (size * 3 // 4, size // 4)
    assert len({*first.train["query"], *first.test["query"]}) == size
    assert first.test["query"][:] == again.test["query"][:]
    assert set(first.test["query"]) != set(other.test["query"])
    assert first.report["train"]["dropped"]["duplicate"] == 5
    assert first.report["train"]["dropped"]["held out"] == size // 4


def test_a_closed_set_of_prompts_is_evaluated_on_itself(tmp_path) -> None:
    recipe = make(tmp_path, ["north", "south", "east", "west", "east"], held_out=0)
    prompts = load_prompts(recipe)
    assert recipe.data.prompts.unheld
    assert sorted(prompts.train["query"]) == sorted(prompts.test["query"]) == ["east", "north", "south", "west"]
    assert prompts.report["train"] == {"rows": 5, "dropped": {"empty": 0, "duplicate": 1}, "kept": 4}
    # each of the four is asked as often as it fits into evaluation.prompts
    recipe.evaluation.prompts = 11
    assert draw_prompts(prompts.test, recipe)["query"][:] == prompts.test["query"][:] * 2
    recipe.evaluation.prompts = 3
    assert len(set(draw_prompts(prompts.test, recipe)["query"])) == 3
    assert not make(tmp_path, ["a"], ["b"], held_out=0).data.prompts.unheld  # a test set of its own is held out


def test_sorted_sets_come_shuffled(tmp_path) -> None:
    rows = [f"{i:03}" for i in range(100)]
    prompts = load(tmp_path, rows, [f"t{i:03}" for i in range(100)])
    for texts in (prompts.train["query"][:], prompts.test["query"][:]):
        assert texts != sorted(texts)
        assert len(set(texts)) == 100


def test_dialogue_and_first_turn(tmp_path) -> None:
    talk = "\n\nHuman: Is\ntea hot?\n\nAssistant: Yes.\n\nHuman: Always?\n\nAssistant: No."
    rows = [talk, talk.replace("tea", "ice")]
    whole = load(tmp_path, rows, held_out=0.5, query={"kind": "dialogue"})
    assert {*whole.train["query"], *whole.test["query"]} == {text.removesuffix(" No.") for text in rows}
    turn = load(tmp_path, rows, held_out=0.5, query={"kind": "first_turn"}, template="Q: {query} {x}\nA:")
    assert {*turn.train["query"], *turn.test["query"]} == {"Is tea hot?", "Is ice hot?"}
    assert turn.train["prompt"][0] == f"Q: {turn.train['query'][0]} {{x}}\nA:"


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, r"train\.jsonl.*can't be read: it holds no rows"),
        (["a", "b"], {"min_chars": 200}, r"filter 'min_chars' left none of 2 rows.*Lower data\.prompts\.min_chars"),
        (["aaa", "bbb"], {"max_query_chars": 3}, r"filter 'max_query_chars' left none.*Raise"),
        ([" ", "\n"], {}, r"filter 'empty' left none of 2 rows"),
        (
            ["a", "b"],
            {"query": {"kind": "dialogue"}},
            r"row 0, column 'text' is not a dialogue: it begins 'a'.*kind to text",
        ),
        (["a", "b"], {"query": {"kind": "first_turn"}}, r"row 0, column 'text' is not a dialogue"),
        (
            ["a", "b"],
            {"column": "review"},
            r"column 'review' not found in .*text\)\. Set data\.prompts\.column",
        ),
        (["a", "a"], {}, r"held_out=0\.1 of 1 prompts leaves 0 for evaluation.*\. Give it more prompts, or name"),
        (["a", "b", "c"], {}, r"held_out=0\.1 of 3 prompts leaves 0 for evaluation.*\. Raise it, or name"),
        (["a", "b"], {"held_out": 1.0}, r"leaves 2 for evaluation and 0 for training\. Lower it, or name"),
        (["a", "b"], {"test": ["a", "b", "c"]}, r"filter 'in test' left none of 2 rows.*data\.prompts\.test"),
        (["a", "b"], {"test": [" "]}, r"test\.jsonl.*filter 'empty' left none"),
    ],
)
def test_nothing_left_or_nothing_fitting_is_refused(tmp_path, rows, settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, rows, **settings)


# ------------------------------------------------------------ tokens


def texts(*queries: str) -> Dataset:
    return Dataset.from_dict({"query": list(queries), "prompt": list(queries)})


def test_room_for_the_response(tmp_path, tokenizer) -> None:
    recipe = make(tmp_path, ["x"])  # responses of 4 tokens
    rows, counts = tokenize_prompts(texts("a b", "a b c", "a b c d"), recipe, tokenizer, positions=7)
    assert rows.to_list() == [
        {"query": "a b", "prompt": "a b", "input_ids": [0, 1]},
        {"query": "a b c", "prompt": "a b c", "input_ids": [0, 1, 2]},
    ]
    assert counts == {"rows": 3, "query too long": 0, "too long": 1, "kept": 2}
    with pytest.raises(DataError, match=r"none of the 1 prompts .* of 4 tokens .* 6 positions .*shortest has 4 tokens"):
        tokenize_prompts(texts("a b c d"), recipe, tokenizer, positions=6)
    with pytest.raises(DataError, match=r"responses of 4 tokens leave no room .* 4 positions\. Lower generation\."):
        tokenize_prompts(texts("a"), recipe, tokenizer, positions=4)


def test_the_longest_response_is_the_samplers_last_value() -> None:
    assert GenerationConfig(max_new_tokens=9).response_limit == 9
    assert GenerationConfig(max_new_tokens=9, length_sampler={"min": 4, "max": 16}).response_limit == 15


@pytest.mark.parametrize("kind", ["first_tokens", "first_words"])
def test_openings_are_uniform_in_min_to_max_exclusive(tmp_path, tokenizer, kind: str) -> None:
    rng = random.Random(0)
    rows = texts(*{" ".join(rng.choices(LETTERS, k=12)) for _ in range(1200)})
    recipe = make(tmp_path, ["x"], query={"kind": kind, "min": 2, "max": 5})
    cut, counts = tokenize_prompts(rows, recipe, tokenizer, positions=64)
    assert counts["kept"] == 1200
    sizes = [len(ids) for ids in cut["input_ids"]]
    # 400 each are expected, with a standard deviation of 16
    assert {size: abs(sizes.count(size) - 400) < 65 for size in set(sizes)} == {2: True, 3: True, 4: True}
    for row, text in zip(cut, rows["query"], strict=True):
        words = text.split()[: len(row["input_ids"])]
        assert row["query"] == row["prompt"] == " ".join(words)
        assert row["input_ids"] == [LETTERS.index(word) for word in words]


def test_an_openings_length_hangs_on_seed_and_text_alone(tmp_path, tokenizer) -> None:
    rows = texts(*(" ".join(LETTERS[i : i + 10]) for i in range(16)))
    query = {"kind": "first_tokens", "min": 1, "max": 9}
    first, other = (make(tmp_path, ["x"], seed=seed, query=query) for seed in (0, 1))
    cut = {row["query"] for row in tokenize_prompts(rows, first, tokenizer, 64)[0]}
    assert cut == {row["query"] for row in tokenize_prompts(rows.select(range(15, -1, -1)), first, tokenizer, 64)[0]}
    assert cut >= {row["query"] for row in tokenize_prompts(rows.select([3, 5]), first, tokenizer, 64)[0]}
    assert cut != {row["query"] for row in tokenize_prompts(rows, other, tokenizer, 64)[0]}


def test_marks_around_a_text_are_not_counted_but_kept(tmp_path, tokenizer) -> None:
    marked = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    marked.add_special_tokens({"bos_token": "<s>", "eos_token": "<s>"})
    marked.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <s>", special_tokens=[("<s>", marked.bos_token_id)]
    )
    recipe = make(tmp_path, ["x"], query={"kind": "first_tokens", "min": 2, "max": 3})
    rows, _ = tokenize_prompts(texts("c d e f"), recipe, marked, 64)
    assert rows.to_list() == [{"query": "c d", "prompt": "c d", "input_ids": [29, 2, 3, 29]}]


def test_the_template_comes_after_the_cut(tmp_path, tokenizer) -> None:
    recipe = make(tmp_path, ["x"], query={"kind": "first_tokens", "min": 2, "max": 3}, template="Q: {query} A:")
    rows, _ = tokenize_prompts(texts("c d e f"), recipe, tokenizer, 64)
    assert rows.to_list() == [{"query": "c d", "prompt": "Q: c d A:", "input_ids": [26, 2, 3, 27]}]


def test_openings_longer_than_asked_are_dropped(tmp_path, tokenizer) -> None:
    recipe = make(tmp_path, ["x"], query={"kind": "first_words", "min": 2, "max": 3}, max_query_chars=4)
    rows, counts = tokenize_prompts(texts("a b c", "aa b c"), recipe, tokenizer, 64)
    assert rows["query"][:] == ["a b"]
    assert counts == {"rows": 2, "query too long": 1, "too long": 0, "kept": 1}
    with pytest.raises(DataError, match=r"raise data\.prompts\.max_query_chars"):
        tokenize_prompts(texts("aa b c"), recipe, tokenizer, 64)


def test_no_evaluation_prompt_is_a_training_prompt(tmp_path, tokenizer) -> None:
    recipe = make(tmp_path, ["x"], query={"kind": "first_tokens", "min": 2, "max": 3})
    train, test, counts = tokenize_splits(texts("a b c", "a b d"), texts("a b e", "c d e"), recipe, tokenizer, 64)
    assert train["query"][:] == ["a b", "a b"]  # the distribution that was asked for: repeats stay
    assert test["query"][:] == ["c d"]
    assert counts["test"] == {"rows": 2, "query too long": 0, "too long": 0, "in train": 1, "kept": 1}
    with pytest.raises(DataError, match=r"all 1 evaluation prompts are training .* set data\.prompts\.held_out to 0"):
        tokenize_splits(texts("a b c"), texts("a b e"), recipe, tokenizer, 64)
    closed = make(tmp_path, ["x"], query={"kind": "first_tokens", "min": 2, "max": 3}, held_out=0)
    _, test, counts = tokenize_splits(texts("a b c", "c d"), texts("a b c", "c d"), closed, tokenizer, 64)
    assert test["query"][:] == ["a b", "c d"]
    assert counts["test"]["kept"] == 2


def test_a_row_of_the_training_set_is_no_evaluation_row_of_openings(tmp_path) -> None:
    query = {"kind": "first_words", "min": 1, "max": 2}
    prompts = load(tmp_path, ["a b", "a c", "a d"], ["a d", "a e"], query=query)
    assert sorted(prompts.train["query"]) == ["a b", "a c"]  # whole texts yet, compared as such


def test_evaluation_queries_that_pairs_ask_too() -> None:
    asked = ["\n\nHuman: tea?\n\nAssistant:", "\n\nHuman: ice?\n\nAssistant: No.\n\nHuman: why?\n\nAssistant:"]

    def shared(kind: str, *queries: str) -> int | None:
        return shared_with_pairs(Prompts(texts("x"), texts(*queries), {}), asked, QueryConfig(kind=kind))

    assert shared("dialogue", asked[0], asked[0].replace("tea", "rum")) == 1
    assert shared("first_turn", "tea?", "ice?", "why?") == 2
    assert shared("first_tokens", "tea?") is None
