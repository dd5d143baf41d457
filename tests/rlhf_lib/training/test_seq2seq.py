"""A T5 trained from scratch or further: what it is given and learns, its shape, and a mapping learnt by heart."""

import math
import random

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5ForConditionalGeneration

from rlhf_lib.models.loading import load_policy, positions
from rlhf_lib.models.trunk import trunk_and_head
from rlhf_lib.recipe import ComputeConfig, FromScratchConfig, LoraConfig, TrainConfig
from rlhf_lib.training import scratch, sft

COMPUTE = ComputeConfig(device="cpu", precision="fp32")
SIZE = FromScratchConfig(architecture="t5", layers=1, width=64, heads=4, positions=48, vocab_size=300)
ANSWERS = {"the cat": " mews at night.", "the dog": " barks at noon.", "the cow": " moos at dawn."}


def corpus(rows, seed=0):
    animals = random.Random(seed).choices(sorted(ANSWERS), k=rows)
    return Dataset.from_dict({"prompt": animals, "chosen": [ANSWERS[a] for a in animals]})


@pytest.fixture(scope="module")
def tokenizer():
    return scratch.train_tokenizer([p + a for p, a in ANSWERS.items()] * 5, 300, 48, append_eos=True)


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    train = TrainConfig(from_scratch=SIZE, epochs=12, batch_size=16, learning_rate=1e-2)
    figures = sft.train_base_model(
        corpus(160), folder, train=train, compute=COMPUTE, seed=0, tokenizer=tokenizer, held_out=corpus(20, seed=1)
    )
    return folder, *figures


def test_the_tokenizer_ends_what_the_encoder_reads(tokenizer, tmp_path):
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (0, 1, None)
    tokenizer.save_pretrained(tmp_path)
    for made in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = made("the cat").input_ids
        assert ids[-1] == 0
        assert ids.count(0) == 1
        assert made("the cat", add_special_tokens=False).input_ids == ids[:-1]
        assert made.decode(ids, skip_special_tokens=True) == "the cat"


def test_what_is_trained_on(tokenizer):
    rows = Dataset.from_dict({"prompt": ["ab"], "chosen": [" x"], "rejected": [" z"]})
    prompt = tokenizer("ab").input_ids
    chosen, rejected = ([*tokenizer(t, add_special_tokens=False).input_ids, 0] for t in (" x", " z"))
    assert (len(prompt), len(chosen)) == (3, 3)  # bytes that no merge joined

    made, truncated = sft.tokenize_seq2seq(rows, tokenizer, 48, ("chosen", "rejected"))
    assert list(made["input_ids"]) == [prompt, prompt]
    assert list(made["labels"]) == [chosen, rejected]
    assert (list(made["length"]), truncated) == ([6, 6], 0)

    made, truncated = sft.tokenize_seq2seq(rows, tokenizer, 5, ("chosen",))
    assert (made[0]["input_ids"], made[0]["labels"], truncated) == (prompt[1:], chosen, 1)
    made, truncated = sft.tokenize_seq2seq(rows, tokenizer, 3, ("chosen",))
    assert (made[0]["input_ids"], made[0]["labels"], truncated) == (prompt[2:], chosen[1:], 1)


def test_the_model_is_flan_t5s_kind(tokenizer):
    model = scratch.scratch_t5(SIZE, tokenizer, seed=0)
    config = model.config
    assert (config.d_ff, config.d_kv, config.num_decoder_layers) == (256, 16, 1)
    assert (config.is_gated_act, config.dropout_rate, config.scale_decoder_outputs) == (True, 0, False)
    assert config.decoder_start_token_id == tokenizer.pad_token_id
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight
    assert model.lm_head.weight is not model.shared.weight
    assert trunk_and_head(model)[1] is model.lm_head
    again = scratch.scratch_t5(SIZE, tokenizer, seed=0)
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)


def test_the_held_out_loss_of_a_uniform_model_is_log_v(tokenizer):
    model = scratch.scratch_t5(SIZE, tokenizer, seed=0)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert sft.answer_loss(model, tokenizer, corpus(7), 48) == pytest.approx(math.log(len(tokenizer)), rel=1e-5)


def test_the_held_out_loss_is_that_of_the_models_own_forward_pass(tokenizer):
    model = scratch.scratch_t5(SIZE, tokenizer, seed=0).eval()
    rows = corpus(1)
    labels = torch.tensor([[*tokenizer(rows["chosen"][0], add_special_tokens=False).input_ids, 0]])
    with torch.no_grad():
        theirs = model(**tokenizer(list(rows["prompt"]), return_tensors="pt"), labels=labels).loss.item()
    assert sft.answer_loss(model, tokenizer, rows, 48) == pytest.approx(theirs, rel=1e-5)


def test_training_from_scratch_learns_the_answers_and_how_they_end(trained, tokenizer):
    folder, metrics, log = trained
    assert log[0]["loss"] == pytest.approx(math.log(len(tokenizer)), abs=1.5)
    assert metrics["loss/train"] < 0.1 * log[0]["loss"]
    assert metrics["loss/held_out"] < 0.05
    assert metrics["perplexity/held_out"] == pytest.approx(math.exp(metrics["loss/held_out"]))
    assert (metrics["rows"], metrics["truncated"]) == (160, 0)

    model = load_policy(str(folder))
    assert isinstance(model, T5ForConditionalGeneration)
    assert model.lm_head.weight is not model.shared.weight
    assert positions(model.config) > 10_000  # relative positions
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (0, 1)
    prompts = AutoTokenizer.from_pretrained(folder)(list(ANSWERS), return_tensors="pt", padding=True)
    generated = model.generate(**prompts, max_new_tokens=24, do_sample=False)
    assert tokenizer.batch_decode(generated, skip_special_tokens=True) == list(ANSWERS.values())
    assert [row.count(0) for row in generated.tolist()] == [1, 1, 1]


def test_a_given_model_goes_on_from_where_it_is_with_an_adapter_merged(trained, tmp_path):
    folder, metrics, _ = trained
    swapped = corpus(64).map(lambda row: {"chosen": " no."})
    train = TrainConfig(max_steps=12, learning_rate=2e-2)
    tuned, _ = sft.train_base_model(
        swapped,
        tmp_path,
        train=train,
        compute=COMPUTE,
        seed=0,
        model=str(folder),
        lora=LoraConfig(r=4, alpha=8, target_modules=["q", "v"]),
        held_out=swapped,
    )
    before, after = (AutoModelForSeq2SeqLM.from_pretrained(f).state_dict() for f in (folder, tmp_path))
    assert before.keys() == after.keys()
    changed = {name.rsplit(".", 2)[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q", "v"}
    model, tokenizer = load_policy(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert tuned["loss/held_out"] < 0.7 * sft.answer_loss(model, tokenizer, swapped, 48)
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
