"""SFT of chat models: which tokens teach, and that an answer learns to end."""

import pytest
import torch
from chat_models import chat_folder, chat_model, chat_tokenizer
from datasets import Dataset
from tiny_models import one_thread  # noqa: F401
from transformers import AutoModelForCausalLM, GenerationConfig

from rlhf_lib.conversation import Conversation, columns_of
from rlhf_lib.models.chat import prompt_ids, turn_end
from rlhf_lib.models.loading import load_tokenizer
from rlhf_lib.ppo.rollout import sample_responses
from rlhf_lib.recipe import ComputeConfig, TrainConfig
from rlhf_lib.recipe import GenerationConfig as Generation
from rlhf_lib.training.sft import _causal_trainer, tokenize_answers, train_base_model
from rlhf_lib.training.supervised import trainer_arguments

ASKED = Conversation(
    [
        {"role": "user", "content": "Hello, how are you today?"},
        {"role": "assistant", "content": "Thank you."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
)
ANSWER = "Paris."
PAIRS = Dataset.from_dict(columns_of([ASKED] * 32, "prompt") | {"chosen": [ANSWER] * 32})


@pytest.mark.parametrize("pad", ["<|pad|>", "<|im_end|>"])
def test_padding_teaches_nothing_and_an_end_of_turn_does_though_it_pads_too(pad, tmp_path):
    tokenizer = chat_tokenizer("smollm2")
    tokenizer.pad_token = pad
    model, end = chat_model(tokenizer), turn_end(tokenizer)
    rows, _ = tokenize_answers(
        Dataset.from_dict(columns_of([ASKED, Conversation(ASKED.messages[:1])], "prompt") | {"chosen": [ANSWER] * 2}),
        tokenizer,
        200,
        ["chosen"],
        completion_only=False,
    )
    train = TrainConfig(batch_size=2, max_steps=1)
    arguments = trainer_arguments(train, 2, ComputeConfig(device="cpu"), 0, tmp_path, schedule="cosine")
    batch = next(iter(_causal_trainer(model, tokenizer, rows, arguments, None).get_train_dataloader()))
    lengths = sorted(rows["length"])
    assert batch["input_ids"].shape == (2, lengths[1])
    longer, shorter = sorted(batch["labels"].tolist(), key=lambda labels: -sum(label != -100 for label in labels))
    assert (longer.count(end), shorter.count(end)) == (2, 1)  # of each of the assistant's turns, and of no padding
    assert shorter[lengths[0] :] == [-100] * (lengths[1] - lengths[0])


def test_a_chat_model_learns_its_answer_and_where_to_end(tmp_path):
    folder = chat_folder(tmp_path / "start", "chatml")
    metrics, log = train_base_model(
        PAIRS,
        tmp_path / "trained",
        train=TrainConfig(max_steps=60, batch_size=8, learning_rate=1e-2),
        compute=ComputeConfig(device="cpu"),
        model=str(folder),
        held_out=PAIRS,
    )
    assert log[-1]["loss"] < 0.1 * log[0]["loss"]
    assert metrics["loss/held_out"] < 0.1
    tokenizer = load_tokenizer(str(tmp_path / "trained"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    sampled = sample_responses(
        model, tokenizer, prompt_ids(tokenizer, [ASKED]), Generation(max_new_tokens=32), seed=0, greedy=True
    )
    assert sampled.texts == [ANSWER]
    assert sampled.ended == [True]
    assert sampled.response_ids[0][-1] == turn_end(tokenizer)


def test_a_base_model_gets_a_templates_control_tokens(tmp_path):
    """chatml on a tokenizer that has none of its tokens: the embeddings grow, and the folder is a chat model's."""
    from rlhf_lib.models.chat import set_template
    from rlhf_lib.recipe import PolicyConfig

    folder = str(chat_folder(tmp_path / "start", "llama3"))
    before = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight.shape[0]
    tokenizer = load_tokenizer(folder)
    train = TrainConfig(max_steps=2, batch_size=4)
    set_template(tokenizer, PolicyConfig(model=folder, chat_template="chatml", train=train))
    train_base_model(
        PAIRS,
        tmp_path / "trained",
        train=train,
        compute=ComputeConfig(device="cpu"),
        model=folder,
        tokenizer=tokenizer,
    )
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    assert trained.get_input_embeddings().weight.shape[0] == before + 2
    saved = load_tokenizer(str(tmp_path / "trained"))
    ends = GenerationConfig.from_pretrained(tmp_path / "trained").eos_token_id
    assert saved.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>", "<|eot_id|>"]
    assert torch.isfinite(trained.lm_head.weight).all()
