"""Prompts of messages given to the trainer itself, without a pipeline."""

import pytest
from chat_models import chat_model, chat_tokenizer
from datasets import Dataset
from tiny_models import one_thread  # noqa: F401

from rlhf_lib.conversation import Conversation
from rlhf_lib.errors import DataError
from rlhf_lib.ppo.inputs import prompt_rows
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.recipe import GenerationConfig, PPOConfig

PROMPTS = [
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello, how are you?"}],
    [{"role": "user", "content": "What is the capital of France?"}],
]


@pytest.mark.parametrize("form", ["lists", "rows", "column", "data set"])
def test_messages_are_rendered_in_the_tokenizers_template(form):
    tokenizer = chat_tokenizer("qwen2_5")
    given = {
        "lists": PROMPTS,
        "rows": [{"messages": messages, "kind": "x"} for messages in PROMPTS],
        "column": [{"asked": messages} for messages in PROMPTS],
        "data set": Dataset.from_dict({"prompt": PROMPTS}),
    }[form]
    rows = prompt_rows(given, tokenizer, "asked" if form == "column" else None)
    for row, messages in zip(rows, PROMPTS, strict=True):
        own = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert row["input_ids"] == own
        assert row["query"] == Conversation(messages)
        assert row["query"].messages == messages
    assert form != "rows" or rows[0]["kind"] == "x"


def test_ppo_trains_on_conversations_and_the_reward_gets_them():
    tokenizer, seen = chat_tokenizer("qwen2_5"), []

    def reward(prompts, completions, completion_ids, **columns):
        seen.extend(zip(prompts, completions, completion_ids, strict=True))
        return [float(len(completion[0]["content"])) for completion in completions]

    config = PPOConfig(steps=2, batch_size=4, learning_rate=1e-3)
    trainer = PPOTrainer(chat_model(tokenizer), tokenizer, reward, PROMPTS, config, GenerationConfig(max_new_tokens=6))
    assert [stats["tokens/responses_len_mean"] > 0 for stats in trainer.train()] == [True, True]
    assert {len(prompt) for prompt, _, _ in seen} == {1, 2}
    for _, completion, ids in seen:
        assert [message["role"] for message in completion] == ["assistant"]
        assert completion[0]["content"] == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_a_message_that_is_none_is_refused_by_its_row():
    with pytest.raises(DataError, match=r"prompts: row 1, column messages: .*both must be text"):
        prompt_rows(
            [{"messages": PROMPTS[0]}, {"messages": [{"role": "user", "content": None}]}], chat_tokenizer("chatml")
        )
