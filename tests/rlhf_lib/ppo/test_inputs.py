"""What a trainer may be given, in which forms, and what it says of what it can't use."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from tiny_models import (
    EOS,
    given_responses,
    one_thread,  # noqa: F401
    remainder_reward,
    tiny_gpt2,
    tiny_llama,
    tiny_prompts,
    tiny_t5,
    word_tokenizer,
)
from transformers import GPT2Model

from rlhf_lib.errors import DataError, ModelError, RecipeError, RLHFError
from rlhf_lib.models.policy import Policy
from rlhf_lib.ppo.inputs import prompt_rows
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.recipe import GenerationConfig, PPOConfig

TEXTS = ["w1 w2", "w5"]
IDS = [[1, 2], [5]]
ROWS = [{"query": text, "input_ids": ids} for text, ids in zip(TEXTS, IDS, strict=True)]


def trainer(policy=None, **given) -> PPOTrainer:
    settings = {
        "tokenizer": word_tokenizer(),
        "reward": remainder_reward,
        "prompts": TEXTS,
        "config": PPOConfig(steps=1, batch_size=4),
        "generation": GenerationConfig(max_new_tokens=3),
    }
    return PPOTrainer(tiny_gpt2() if policy is None else policy, **settings | given)


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    "prompts",
    [
        TEXTS,
        tuple(TEXTS),
        IDS,
        [torch.tensor(ids) for ids in IDS],
        [np.array(ids) for ids in IDS],
        ROWS,
        [{"query": text} for text in TEXTS],
        [{"prompt": text} for text in TEXTS],
        [{"text": text} for text in TEXTS],
        [{"input_ids": torch.tensor(ids)} for ids in IDS],
        Dataset.from_dict({"text": TEXTS}),
        Dataset.from_dict({"query": TEXTS, "input_ids": IDS}).with_format("torch"),
        Dataset.from_dict({"input_ids": IDS}),
    ],
    ids=lambda prompts: f"{type(prompts).__name__} of {type(prompts[0]).__name__}",
)
def test_every_form_of_prompts_makes_the_same_rows(prompts):
    rows = prompt_rows(prompts, word_tokenizer())
    assert [(row["query"], row["input_ids"]) for row in rows] == list(zip(TEXTS, IDS, strict=True))


def test_a_column_is_named_where_it_has_another_name():
    reviews = Dataset.from_dict({"review": TEXTS, "text": ["w9", "w9"], "stars": [1, 5]})
    rows = prompt_rows(reviews, word_tokenizer(), "review")
    assert [row["query"] for row in rows] == TEXTS
    assert [row["stars"] for row in rows] == [1, 5]  # for metrics
    assert trainer(prompts=reviews, prompt_column="review").prompts == rows
    assert prompt_rows([{"ids": ids} for ids in IDS], word_tokenizer(), "ids")[0] == {"ids": [1, 2]} | ROWS[0]


def test_the_policy_continues_the_prompt_and_the_reward_sees_the_query():
    (row,) = prompt_rows([{"query": "w1", "prompt": "w7 w1 w8"}], word_tokenizer())
    assert (row["query"], row["input_ids"]) == ("w1", [7, 1, 8])


def test_special_tokens_are_no_part_of_a_query():
    assert prompt_rows([[EOS, 3]], word_tokenizer())[0]["query"] == "w3"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("w1 w2", "prompts is one text: put it into a list"),
        (
            7,
            "prompts is an int: give a list of texts, of lists of messages or token ids, a datasets.Dataset, or rows",
        ),
        ((text for text in TEXTS), "prompts is a generator: give a list of texts"),
        (DatasetDict({"train": Dataset.from_dict({"text": TEXTS})}), "prompts is a DatasetDict of train: give one"),
        (Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(), "prompts is an IterableDataset: give a list"),
        (Dataset.from_dict({"text": TEXTS}).to_pandas(), "prompts is a DataFrame: give a list"),
        (Dataset.from_dict({"review": TEXTS}), r"prompts has the columns review, and none of .* prompt_column=\.\.\."),
        ([{"answer": "w1"}], "prompts: row 0 has the columns answer, and none of query, prompt, text or input_ids"),
        (["w1", None], "prompts: row 1 is None, neither a text nor a list of token ids"),
        ([[1, 2], [1.5]], r"prompts: row 1 is \[1.5\], neither a text nor"),
        ([{"query": "w1", "input_ids": "1 2"}], "prompts: row 0, input_ids is '1 2', neither"),
        (
            [{"prompt": [{"role": "user", "content": "w1"}]}],
            "prompts are messages, and the tokenizer has no chat_template: set one, or give texts",
        ),
        (["w1", ""], "prompts: row 1 has no tokens: drop empty prompts"),
        ([], "no prompts"),
        (
            [[1], [61]],
            r"row 1 has the token 61, and the policy knows 61 tokens\. Use the model's own tokenizer",
        ),
        ([[1], [-100]], "prompts: row 1 has -100 among its token ids"),
        ([[1] * 63], "row 0 has 63 tokens and a response up to 3, more than the policy's 64 positions: shorten"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_prompts_that_cannot_be_used_are_refused_by_name(prompts, message):
    with pytest.raises(RLHFError, match=message) as error:
        trainer(prompts=prompts)
    assert "\n" not in str(error.value)


def test_a_column_that_is_not_there_is_guessed():
    with pytest.raises(DataError, match=r"no column reviews: did you mean review\? There are review, stars"):
        trainer(prompts=Dataset.from_dict({"review": TEXTS, "stars": [1, 5]}), prompt_column="reviews")


def test_evaluation_prompts_are_checked_as_the_others_are():
    with pytest.raises(DataError, match="eval_prompts: row 1 has no tokens"):
        trainer(eval_prompts=["w1", ""])
    with pytest.raises(RLHFError, match="eval_every is 2, and there are no eval_prompts"):
        trainer(config=PPOConfig(eval_every=2))


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama], ids=["table", "rotary"])
def test_a_prompt_may_fill_all_positions_but_the_response_s(build):
    # 62 + 3 tokens, of which the last is never read
    assert len(list(trainer(build(), prompts=[[1] * 62]).train())) == 1


def test_a_seq2seq_policy_reads_prompts_of_any_length():
    assert len(list(trainer(tiny_t5(), prompts=[[1] * 100]).train())) == 1


# ---------------------------------------------------------------- policies


def test_a_plain_model_is_made_into_a_policy():
    model = tiny_gpt2()
    made = trainer(model).policy
    assert isinstance(made, Policy)
    assert made.model is model
    policy = Policy(tiny_gpt2())
    assert trainer(policy).policy is policy


def test_a_peft_model_trains_its_adapter():
    adapted = get_peft_model(tiny_gpt2(), LoraConfig(r=2, fan_in_fan_out=True))
    names = {name for name, p in trainer(adapted).policy.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in name or name.startswith("v_head.") for name in names)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("gpt2", r"the policy is a name, gpt2: load the model, AutoModelForCausalLM.from_pretrained\('gpt2'\)"),
        (PPOConfig(), r"the policy is a PPOConfig: give a .* PPOTrainer\(policy, tokenizer, .*trl_compat"),
        (SimpleNamespace(pretrained_model=1), "a value head of its own: give its .pretrained_model"),
        (lambda: GPT2Model(tiny_gpt2().config), "GPT2Model has no language-model head: load it with AutoModelFor"),
        (lambda: tiny_gpt2().requires_grad_(False), "no weight of the model learns"),
        (lambda: tiny_gpt2().half(), "Adam makes NaN of fp16 weights"),
    ],
    ids=["name", "config", "wrapped", "headless", "frozen", "half"],
)
def test_a_policy_that_cannot_learn_is_refused(policy, message):
    with pytest.raises(ModelError, match=message):
        trainer(policy() if callable(policy) else policy)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokenizer": "gpt2"}, "the tokenizer is a str: load it"),
        ({"reward": None}, r"the reward is None: give a function of \(queries, responses\)"),
        ({"reward": tiny_gpt2()}, "the reward is a GPT2LMHeadModel: give a function"),
        ({"config": {"steps": 3}}, "config is a dict: give a rlhf_lib.recipe.PPOConfig"),
        ({"generation": transformers.GenerationConfig()}, "generation is a transformers.*: give a rlhf_lib.recipe.Gen"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_arguments_of_other_kinds_are_refused(given, message):
    with pytest.raises((ModelError, RecipeError), match=message):
        trainer(**given)


# ---------------------------------------------------------------- the end of a response


def no_eos():
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


def endless():
    model = tiny_gpt2()
    model.generation_config.eos_token_id = None
    return model


def test_responses_that_could_never_end_are_refused():
    with pytest.raises(ModelError, match=r"neither the tokenizer nor .* has an EOS token.*ignore_eos=True"):
        trainer(endless(), tokenizer=no_eos())
    for generation in ({"ignore_eos": True}, {"stop": "w3"}):
        trainer(endless(), tokenizer=no_eos(), generation=GenerationConfig(**generation))
    trainer(tiny_gpt2(), tokenizer=no_eos())  # the model's own


def test_an_eos_that_the_policy_does_not_know_is_refused():
    tokenizer = word_tokenizer(80)
    tokenizer.eos_token = "w70"
    with pytest.raises(ModelError, match="the EOS token has id 70, and the policy knows 61 tokens, so no response"):
        trainer(endless(), tokenizer=tokenizer)


# ---------------------------------------------------------------- responses from elsewhere


@pytest.mark.parametrize(
    ("query", "response", "message"),
    [
        ([1], [2, 61], "response 1 has the token 61, and the policy knows 61"),
        ([99], [2], "query 1 has the token 99"),
        ([1] * 40, [2] * 26, "query 1 and its response have 66 tokens, more than the policy's 64 positions"),
    ],
)
def test_given_tokens_that_the_policy_does_not_know_are_named(query, response, message):
    with pytest.raises(ModelError, match=message):
        trainer().learn(given_responses([[1], query], [[2], response]), torch.zeros(2))


def test_computed_positions_have_no_limit_for_given_responses():
    trainer(tiny_llama()).learn(given_responses([[1] * 40], [[2] * 40]), torch.zeros(1))


def test_rows_of_a_run_are_taken_as_they_are():
    assert trainer(prompts=tiny_prompts()).prompts == tiny_prompts()
