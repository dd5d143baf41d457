"""Corpora: what a causal and a seq2seq model learn of a text, what is dropped, and which queries cut a text."""

import json

import pytest
from datasets import load_dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from rlhf_lib.data.corpus import load_corpus, split_answers
from rlhf_lib.data.prompt_tokens import tokenize_prompts
from rlhf_lib.data.prompts import load_prompts
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import PromptsConfig, Recipe
from rlhf_lib.training.scratch import EOS, train_tokenizer

TRAIN = ["one two three four five", "one  two three\nfour", "", "  ", "one two", "one two three four five", "a b c d"]
TEST = ["a b c d", "x y z", "x y z"]


@pytest.fixture
def folder(tmp_path):
    for split, texts in (("train", TRAIN), ("test", TEST)):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path


def make(folder, architecture="t5", query=None, **prompts) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "data": {
                "prompts": {
                    "dataset": str(folder),
                    "query": query or {"kind": "first_words", "min": 2, "max": 3},
                    "test": {},
                }
                | prompts,
                "corpus": {},
            },
            "policy": {"train": {"from_scratch": {"architecture": architecture}}},
            "reward": {"kind": "function", "function": "a:b"},
        }
    )


def test_a_causal_model_learns_the_texts_whole(folder):
    corpus = load_corpus(make(folder, "gpt2"))
    assert set(corpus.train["chosen"]) == {"one two three four five", "one  two three\nfour", "one two"}
    assert set(corpus.train["prompt"]) == {""}
    assert corpus.report["train"] == {
        "rows": 7,
        "dropped": {"empty": 2, "duplicate": 1, "in test": 1, "no text after the query": 0},
        "kept": 3,
    }
    assert corpus.report["test"]["dropped"] == {"empty": 0, "duplicate": 1, "no text after the query": 0}


def test_a_seq2seq_model_learns_what_follows_the_query(folder):
    corpus = load_corpus(make(folder))
    rows = {(row["prompt"], row["chosen"]) for row in corpus.train}
    assert rows == {("one two", " three four five"), ("one two", " three four")}
    assert corpus.report["train"]["dropped"]["no text after the query"] == 1
    assert {(row["prompt"], row["chosen"]) for row in corpus.test} == {("a b", " c d"), ("x y", " z")}


def test_the_prompts_are_cut_at_the_same_word_and_end_as_the_encoder_reads_them(folder):
    recipe = make(folder, query={"kind": "first_words", "min": 1, "max": 4}, template="go on: {query}")
    tokenizer = train_tokenizer(TRAIN, 300, append_eos=True)
    prompts, _ = tokenize_prompts(load_prompts(recipe).train, recipe, tokenizer, 128)
    asked = dict(zip(prompts["prompt"], prompts["input_ids"], strict=True))
    learnt = load_corpus(recipe).train["prompt"]
    assert set(learnt) <= set(asked)
    assert {tokenizer.decode(asked[prompt]) for prompt in learnt} == {prompt + EOS for prompt in learnt}


def test_first_tokens_keep_the_end_of_the_encoders_text(folder):
    recipe = make(folder, query={"kind": "first_tokens", "min": 2, "max": 3})
    tokenizer = train_tokenizer(["ab"], 258, append_eos=True)  # bytes
    prompts, _ = tokenize_prompts(load_prompts(recipe).test, recipe, tokenizer, 128)
    assert {tokenizer.decode(ids) for ids in prompts["input_ids"]} == {f"a {EOS}", f"x {EOS}"}


def test_dialogues_are_cut_at_their_last_answer(tmp_path):
    for split in ("train", "test"):
        text = f"\n\nHuman: {split}?\n\nAssistant: hm\n\nHuman: well?\n\nAssistant: yes\n"
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (row,) = load_corpus(make(tmp_path, query={"kind": "dialogue"})).train
    assert row == {"prompt": "\n\nHuman: train?\n\nAssistant: hm\n\nHuman: well?\n\nAssistant:", "chosen": " yes"}


def test_the_limit_draws_with_the_seed(folder):
    recipe = make(folder)
    recipe.data.corpus.limit = 1
    corpus = load_corpus(recipe)
    assert len(corpus.train) == 1
    assert corpus.report["train"]["dropped"]["limit"] == 1


@pytest.mark.parametrize("kind", ["first_tokens", "text"])
def test_a_query_that_cuts_no_text_is_refused_for_seq2seq(folder, kind):
    with pytest.raises(DataError, match=f"data.prompts.query.kind {kind} doesn't cut"):
        load_corpus(make(folder, query={"kind": kind}))
    load_corpus(make(folder, "gpt2", query={"kind": kind}))


def test_missing_columns_and_shared_texts_are_named(folder):
    recipe = make(folder)
    recipe.data.corpus.column = "body"
    with pytest.raises(DataError, match=r"column 'body' not found in .*available: text\)\. Set data\.corpus\.column"):
        load_corpus(recipe)
    same = load_dataset("json", data_files=str(folder / "test.jsonl"), split="train")
    with pytest.raises(DataError, match=r"filter 'in test' left none.*data\.corpus\.test"):
        load_corpus(make(folder), {"corpus/train": same, "corpus/test": same})


ONE = "\n\nHuman: What is tea?\n\nAssistant: A drink."
TWO = ONE + "\n\nHuman: Hot?\n\nAssistant: Mostly."


@pytest.mark.parametrize(
    ("query", "texts", "found"),
    [
        ({"kind": "dialogue"}, [ONE, "plain text", ONE + "\n\nHuman: x\n\nAssistant:"],
         [(" A drink.", "\n\nHuman: What is tea?\n\nAssistant:")]),
        ({"kind": "dialogue"}, [TWO], [(" Mostly.", ONE + "\n\nHuman: Hot?\n\nAssistant:")]),
        ({"kind": "first_turn"}, [TWO, "plain text"], [(" A drink.", "What is tea?")]),
        ({"kind": "first_words", "min": 2, "max": 3}, ["a b c d", "a b"], [(" c d", "a b")]),
        ({"kind": "first_tokens", "min": 2, "max": 3}, ["aa  bb cc", "a"], [(" cc", "aa  bb")]),
        ({"kind": "text"}, ["a b c d"], None),
        ({"kind": "dialogue"}, ["plain text"], None),
    ],
)  # fmt: skip
def test_answers_follow_the_queries_that_the_recipe_cuts(query, texts, found):
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    words.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    settings = {"dataset": "x", "query": query}
    plain = split_answers(texts, PromptsConfig(**settings), words, seed=0)
    assert plain == (found and ([answer for answer, _ in found], [prompt for _, prompt in found]))
    framed = split_answers(texts, PromptsConfig(**settings, template="Q: {query} A:"), words, seed=0)
    assert framed == (found and (plain[0], [f"Q: {prompt} A:" for prompt in plain[1]]))
