"""The base model: its tokenizer, what it is trained on, and a training that must learn its few sentences by heart."""

import math
import random
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, set_seed

from rlhf_lib.errors import DataError, ModelError
from rlhf_lib.recipe import ComputeConfig, FromScratchConfig, LoraConfig, TrainConfig
from rlhf_lib.training import scratch, sft
from rlhf_lib.training.supervised import ShuffledLengthGroups, _Log

COMPUTE = ComputeConfig(device="cpu", precision="fp32")
SIZE = FromScratchConfig(layers=1, width=64, heads=4, positions=48, vocab_size=300)
ANSWERS = {"cat": " mews at night.", "dog": " barks at noon.", "cow": " moos at dawn."}


def pairs(rows, seed=0):
    animals = random.Random(seed).choices(sorted(ANSWERS), k=rows)
    return Dataset.from_dict(
        {
            "prompt": [f"Assistant: the {a}" for a in animals],
            "chosen": [ANSWERS[a] for a in animals],
            "rejected": [" no."] * rows,
        }
    )


@pytest.fixture(scope="module")
def tokenizer():
    rows = pairs(30)
    return scratch.train_tokenizer([p + c for p, c in zip(rows["prompt"], rows["chosen"], strict=True)], 300, 48)


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    train = TrainConfig(from_scratch=SIZE, epochs=8, batch_size=16, learning_rate=1e-2)
    metrics, log = sft.train_base_model(
        pairs(160), folder, train=train, compute=COMPUTE, seed=0, tokenizer=tokenizer, held_out=pairs(20, seed=1)
    )
    return folder, metrics, log


def test_the_tokenizer_is_lossless_and_its_special_tokens_are_apart(tokenizer, tmp_path):
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert len(tokenizer) <= 300
    text = "\n\nHuman: Grüße , 猫!  two spaces \t don't .\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(" Assistant").input_ids) < len(" Assistant")
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == tokenizer(text).input_ids


def test_what_is_trained_on(tokenizer):
    rows = Dataset.from_dict({"prompt": ["ab"], "chosen": [" c"], "rejected": [" d"]})
    prompt, chosen, rejected = (tokenizer(t).input_ids for t in ("ab", " c", " d"))
    assert len(prompt) == 2  # bytes that no merge joined
    whole = [*prompt, *chosen, 0]

    made, truncated = sft.tokenize_answers(rows, tokenizer, 48, ("chosen", "rejected"), False)
    assert made["input_ids"] == [whole, [*prompt, *rejected, 0]]
    assert made["labels"] == made["input_ids"]
    assert (list(made["length"]), truncated) == ([len(whole), len(prompt) + len(rejected) + 1], 0)

    made, truncated = sft.tokenize_answers(rows, tokenizer, len(whole) - 1, ("chosen",), True)
    assert made["input_ids"] == [whole[1:]]
    assert made["labels"] == [[-100, *chosen, 0]]
    assert (list(made["length"]), truncated) == ([len(whole) - 1], 1)


def test_the_held_out_loss_of_a_uniform_model_is_log_v(tokenizer):
    set_seed(0)
    model = scratch.scratch_model(SIZE, tokenizer, seed=0)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert sft.answer_loss(model, tokenizer, pairs(7), 48) == pytest.approx(math.log(len(tokenizer)), rel=1e-5)


def test_precision_and_device_of_the_training_are_not_those_of_what_follows(tokenizer, tmp_path):
    """A program may go on with TRL's interface, which asks Accelerate."""
    train = TrainConfig(from_scratch=SIZE, max_steps=1)
    sft.train_base_model(
        pairs(4), tmp_path, train=train, compute=ComputeConfig(device="cpu", precision="bf16"), tokenizer=tokenizer
    )
    assert Accelerator().mixed_precision == "no"


def test_the_columns_of_the_answers_are_named():
    rows = Dataset.from_dict({"prompt": ["a"], "completion": ["b"]})
    with pytest.raises(
        DataError, match=r"no column chosen, but prompt, completion: name the columns prompt and chosen"
    ):
        sft.train_base_model(rows, "nowhere", train=TrainConfig(from_scratch=SIZE))
    with pytest.raises(ModelError, match="a model from scratch needs a tokenizer"):
        sft.train_base_model(pairs(1), "nowhere", train=TrainConfig(from_scratch=SIZE))
    with pytest.raises(ModelError, match="there is no model to train: give model"):
        sft.train_base_model(pairs(1), "nowhere", train=TrainConfig())


def test_training_from_scratch_learns_the_answers_and_how_they_end(trained, tokenizer):
    folder, metrics, log = trained
    assert metrics["loss/train"] < 0.1 * log[0]["loss"]
    assert metrics["loss/held_out"] < 0.05
    assert metrics["perplexity/held_out"] == pytest.approx(math.exp(metrics["loss/held_out"]))
    assert (metrics["rows"], metrics["truncated"]) == (160, 0)

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, GPT2LMHeadModel)
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert model.generation_config.eos_token_id == 0
    assert model.generation_config.pad_token_id == 1
    assert model.config.use_cache
    assert (model.config.resid_pdrop, model.config.embd_pdrop, model.config.attn_pdrop) == (0, 0, 0)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    for animal, answer in ANSWERS.items():
        prompt = AutoTokenizer.from_pretrained(folder)(f"Assistant: the {animal}", return_tensors="pt")
        generated = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt.input_ids.shape[1] :]
        assert tokenizer.decode(generated) == answer + scratch.EOS


def test_the_same_seed_gives_the_same_weights(tokenizer, tmp_path):
    def weights(name, seed):
        train = TrainConfig(from_scratch=SIZE, max_steps=2)
        sft.train_base_model(pairs(40), tmp_path / name, train=train, compute=COMPUTE, seed=seed, tokenizer=tokenizer)
        return AutoModelForCausalLM.from_pretrained(tmp_path / name).lm_head.weight

    first, again, other = weights("first", 3), weights("again", 3), weights("other", 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_adapter_is_merged_into_the_model_it_was_trained_on(trained, tmp_path):
    folder, *_ = trained
    train = TrainConfig(max_steps=3, learning_rate=1e-2, completion_only=True)
    swapped = pairs(32).map(lambda row: {"chosen": row["rejected"]})
    metrics, _ = sft.train_base_model(
        swapped, tmp_path, train=train, compute=COMPUTE, seed=0, model=str(folder), lora=LoraConfig(r=4, alpha=8)
    )
    assert "loss/held_out" not in metrics
    before, after = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (folder, tmp_path))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"transformer.h.0.attn.c_attn.weight"}


def test_batches_are_alike_in_length_and_in_random_order():
    lengths = random.Random(0).choices(range(10, 200), k=640)
    torch.manual_seed(0)
    indices = list(ShuffledLengthGroups(16, lengths=lengths))
    assert sorted(indices) == list(range(640))
    batches = [[lengths[i] for i in indices[start : start + 16]] for start in range(0, 640, 16)]
    padded = sum(16 * max(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)
    longest = [max(batch) for batch in batches]
    falls = sum(a > b for a, b in pairwise(longest))
    assert 10 < falls < 29  # sorted groups would fall nearly always


def test_a_loss_that_is_nan_stops_the_training():
    class State:
        global_step = 7

    with pytest.raises(
        ModelError, match=r"base model: .* NaN or infinite at step 7: lower policy\.train\.learning_rate"
    ):
        _Log(None).on_log(SimpleNamespace(output_dir="somewhere/base model"), State(), None, {"loss": math.nan})
