"""Reward functions are called as their authors wrote them, and the same one serves TRL's GRPOTrainer."""

from __future__ import annotations

import asyncio
import functools

import pytest
from datasets import Dataset
from tiny_models import one_thread, tiny_gpt2, word_tokenizer  # noqa: F401
from trl import GRPOConfig, GRPOTrainer

from rlhf_lib.conversation import Conversation, user
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.recipe import GenerationConfig, PPOConfig
from rlhf_lib.rewards import sampled_scores
from rlhf_lib.rewards.calling import by_keywords, call, keywords, read_columns, required_columns

COLUMNS = {"solution": ["4", "7"], "level": [1, 2], "completion_ids": [[5], [6, 0]]}


def texts(queries, responses):
    return [(query, response) for query, response in zip(queries, responses, strict=True)]


def graded(completions, solution, **kwargs):
    return list(zip(completions, solution, strict=True))


def everything(**kwargs):
    return kwargs


def taking_two(*args, **kwargs):
    return texts(*args, **kwargs)


class Grader:
    def __init__(self, bonus=1.0):
        self.bonus = bonus

    def __call__(self, prompts, completions, level=None):
        return [self.bonus + len(prompt) + (0 if level is None else level[i]) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (texts, False),
        (lambda prompts, responses: [], False),  # no keyword of TRL's would reach the second
        (lambda queries, responses, **kwargs: [], False),
        (taking_two, False),
        (max, False),
        (graded, True),
        (everything, True),
        (Grader(), True),
        (functools.partial(graded, weight=2), True),
        (lambda prompts, **kwargs: [], True),
        (lambda completion_ids, **kwargs: [], True),
        (lambda prompts, solution, **kwargs: [], True),
    ],
)
def test_the_form_is_told_by_the_signature(function, expected):
    assert by_keywords(function) is expected


def test_two_lists_of_texts_as_ever():
    assert call(texts, ["a", "b"], ["c", "d"], COLUMNS) == [("a", "c"), ("b", "d")]
    assert call(taking_two, ["a"], ["c"]) == [("a", "c")]
    chat = Conversation([user("Hi")])
    assert call(texts, [chat], ["Hello"]) == [("\n\nHuman: Hi\n\nAssistant:", "Hello")]


def test_keywords_are_those_that_the_function_names():
    assert call(graded, ["a", "b"], ["c", "d"], COLUMNS) == [("c", "4"), ("d", "7")]
    assert call(Grader(), ["a", "bcd"], ["", ""]) == [2.0, 4.0]
    assert call(Grader(), ["a", "bcd"], ["", ""], COLUMNS) == [3.0, 6.0]
    assert call(lambda completions: [completions], ["a"], ["c"], COLUMNS) == [["c"]]
    given = call(everything, ["a", "b"], ["c", "d"], COLUMNS)
    assert {"prompts": ["a", "b"], "completions": ["c", "d"], **COLUMNS}.items() <= given.items()


def test_a_conversation_comes_as_its_messages():
    asked = [Conversation([user("Hi")]), "plain"]
    given = call(everything, asked, ["Hello", " text"])
    assert given["prompts"] == [[{"role": "user", "content": "Hi"}], "plain"]
    assert given["completions"] == [[{"role": "assistant", "content": "Hello"}], " text"]


def test_token_ids_are_there_where_answers_were_sampled():
    def ids(completions, completion_ids):
        return completion_ids

    def or_none(completions, completion_ids=()):
        return completion_ids

    assert call(ids, ["a", "b"], ["c", "d"], COLUMNS) == [[5], [6, 0]]
    assert call(ids, ["a"], ["c"]) is None
    assert call(or_none, ["a"], ["c"], {"completion_ids": None}) == ()
    assert "completion_ids" not in call(everything, ["a"], ["c"])


def test_what_trl_passes_of_its_trainer_has_no_effect():
    def logs(completions, trainer_state, log_extra, log_metric):
        log_extra("seen", completions)
        log_metric("share", 0.5)
        return [trainer_state.global_step]

    assert call(logs, ["a"], ["c"]) == [0]
    assert call(lambda completions, log_extra=None: [log_extra], ["a"], ["c"]) == [None]
    assert call(everything, ["a"], ["c"])["log_metric"]("share", 1) is None


async def slowly(completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(completion)) for completion in completions]


def test_coroutines_run_to_their_end_also_within_a_loop():
    async def within():
        return call(slowly, ["a"], ["bcd"])

    assert call(slowly, ["a"], ["bc"]) == [2.0]
    assert asyncio.run(within()) == [3.0]
    assert sampled_scores(slowly, ["a"], ["b"]) == [1.0]


def test_a_generator_is_a_list():
    assert call(lambda completions: (len(c) for c in completions), ["a"], ["bc"]) == [2]


def test_columns_are_told_from_what_every_reward_gets():
    def strict(prompts, completions, completion_ids, trainer_state, solution, level=None):
        return []

    assert required_columns(strict) == ["solution"]
    assert required_columns(texts) == required_columns(everything) == []
    assert read_columns(strict, COLUMNS) == COLUMNS
    assert read_columns(graded, {"solution": ["4"], "prompts": ["x"]}) == {"solution": ["4"]}
    assert read_columns(texts, COLUMNS) == {}
    assert required_columns(lambda samples, shade, **kwargs: {}, ("samples",)) == ["shade"]
    assert keywords(texts, {"queries": 1, "other": 2}) == {"queries": 1}


# ---------------------------------------------------------------- both trainers


class Echo:
    """A reward as TRL's GRPO has them: the answer's words, a hundred for each character of the solution."""

    __name__ = "echo"

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, completion_ids, solution, **kwargs):
        self.calls.append((list(prompts), list(completions), [list(ids) for ids in completion_ids], list(solution)))
        kwargs["log_metric"]("words", 1.0)
        return [len(said.split()) + 100.0 * len(right) for said, right in zip(completions, solution, strict=True)]


ROWS = [{"prompt": f"w{i} w{i + 1}", "solution": f"w{2 * i} w{2 * i + 1}"} for i in range(1, 5)]


def test_one_function_serves_grpo_and_this_trainer(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    echo = Echo()
    settings = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=5,
        max_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    GRPOTrainer(tiny_gpt2(), echo, settings, Dataset.from_list(ROWS), processing_class=tokenizer).train()
    with_trl, echo.calls = echo.calls, []

    config = PPOConfig(steps=1, batch_size=4, ppo_epochs=1)
    trainer = PPOTrainer(tiny_gpt2(), word_tokenizer(), echo, ROWS, config, GenerationConfig(max_new_tokens=5))
    stats = trainer.train_step()
    solutions = {row["prompt"]: row["solution"] for row in ROWS}
    for calls in (with_trl, echo.calls):
        ((prompts, completions, ids, solution),) = calls
        assert len(completions) == len(ids) == 4
        assert solution == [solutions[prompt] for prompt in prompts]
        for said, row in zip(completions, ids, strict=True):
            assert tokenizer.decode(row, skip_special_tokens=True) == said
    scores = Echo()(*echo.calls[0], log_metric=lambda *_: None)
    assert stats["ppo/mean_scores"] == pytest.approx(sum(scores) / 4)
