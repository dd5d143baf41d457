"""TRL 0.11's models: value heads, their files, and what is a reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import one_thread, same, tiny_gpt2, tiny_llama, weights, word_tokenizer  # noqa: F401
from tiny_trl import QUERIES, RESPONSES, given, logits, lora_config, shake_adapter, started_t5, trainer_of, wrapped
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lib.errors import ModelError
from rlhf_lib.trl_compat import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
)
from tests.rlhf_lib.ppo.test_parity import FIXTURE


def test_forward_gives_logits_loss_and_the_value_by_hand():
    model = wrapped()
    ids = torch.tensor([QUERIES[2]])
    given_logits, loss, values = model(input_ids=ids, labels=ids)
    plain = model.pretrained_model(input_ids=ids, labels=ids, output_hidden_states=True)
    head = model.v_head.summary
    torch.testing.assert_close(given_logits, plain.logits)
    torch.testing.assert_close(loss, plain.loss)
    torch.testing.assert_close(values, (plain.hidden_states[-1] @ head.weight.T + head.bias)[..., 0])
    assert head.weight.abs().sum() > 0  # drawn, as TRL's
    assert len(model(input_ids=ids, return_past_key_values=True)) == 4


def test_seq2seq_values_are_of_the_decoders_states():
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(started_t5())
    ids, decoder_ids = torch.tensor([QUERIES[2]]), torch.tensor([[60, 4, 5]])
    given_logits, loss, values = model(input_ids=ids, decoder_input_ids=decoder_ids)
    assert (given_logits.shape, loss, values.shape) == ((1, 3, 61), None, (1, 3))


def test_value_head_strategies():
    assert not wrapped(v_head_init_strategy="zero").v_head.summary.weight.any()
    normal = wrapped(v_head_init_strategy="normal", v_head_initializer_range=100.0).v_head.summary
    assert normal.weight.std() > 30
    assert not normal.bias.any()
    with pytest.raises(ModelError, match="'orthogonal'"):
        wrapped(v_head_init_strategy="orthogonal")


def test_a_checkpoint_that_trl_wrote_loads_with_its_value_head():
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(FIXTURE / "policy"))
    stored = load_file(FIXTURE / "policy/model.safetensors")
    assert torch.equal(model.v_head.summary.weight, stored["v_head.summary.weight"])
    assert torch.equal(model.v_head.summary.bias, stored["v_head.summary.bias"])
    assert torch.equal(model.pretrained_model.transformer.wte.weight, stored["transformer.wte.weight"])


@pytest.fixture
def adapter_folder(tmp_path) -> Path:
    """TRL's adapter folder, whose base is named again: it was left out of the fixture."""
    folder = shutil.copytree(FIXTURE / "adapter", tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(FIXTURE / "policy")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_an_adapter_that_trl_wrote_loads_with_its_value_head(adapter_folder):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(adapter_folder), is_trainable=True)
    assert model.is_peft_model
    head = torch.load(adapter_folder / "pytorch_model.bin", weights_only=True)
    assert torch.equal(model.v_head.summary.weight, head["v_head.summary.weight"])
    base = AutoModelForCausalLM.from_pretrained(FIXTURE / "policy")
    with_adapter = PeftModel.from_pretrained(base, adapter_folder)
    assert torch.equal(logits(model.pretrained_model), logits(with_adapter))
    with with_adapter.disable_adapter():
        assert not torch.allclose(logits(model.pretrained_model), logits(with_adapter), atol=1e-2)
    assert {name.split(".")[-3] for name, p in model.pretrained_model.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }


def test_an_adapter_that_may_not_learn_is_refused_for_training(adapter_folder):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(adapter_folder))
    with pytest.raises(ModelError, match="is_trainable=True"):
        PPOTrainer(PPOConfig(), model, None, word_tokenizer(97))


def test_an_adapter_without_a_base_is_named():
    with pytest.raises(ModelError, match=r"adapter.*base_model_name_or_path"):
        AutoModelForCausalLMWithValueHead.from_pretrained(str(FIXTURE / "adapter"))


def test_a_full_checkpoint_in_pytorchs_format_loads(tmp_path):
    model = wrapped()
    model.pretrained_model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    assert same(weights(loaded), weights(model))


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "5KB"}], ids=["one-file", "sharded"])
@pytest.mark.parametrize(
    ("kind", "build"),
    [(AutoModelForCausalLMWithValueHead, tiny_llama), (AutoModelForSeq2SeqLMWithValueHead, started_t5)],
    ids=["llama", "t5"],
)
def test_a_saved_model_comes_back_and_is_an_ordinary_one_too(kind, build, shards, tmp_path):
    model = kind.from_pretrained(build())
    model.save_pretrained(tmp_path, **shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(shards)
    assert same(weights(kind.from_pretrained(str(tmp_path))), weights(model))
    plain = kind.transformers_parent_class.from_pretrained(tmp_path)
    assert same(weights(plain), weights(model.pretrained_model))


def test_a_value_head_of_another_width_is_refused(tmp_path):
    wrapped().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors") | {"v_head.summary.weight": torch.zeros(1, 5)}
    torch.save(stored, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"value head.*doesn't fit"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)


def test_a_saved_adapter_comes_back(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "base"), peft_config=lora_config())
    trainer = trainer_of(model)
    trainer.step(*given())
    trainer.save_pretrained(tmp_path / "adapter")
    assert sorted(torch.load(tmp_path / "adapter/pytorch_model.bin", weights_only=True)) == [
        "v_head.summary.bias",
        "v_head.summary.weight",
    ]
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "adapter"))
    assert same(weights(loaded), weights(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter")("w5").input_ids == [5]


def test_weights_are_fp32_unless_told_otherwise(tmp_path):
    tiny_gpt2().to(torch.bfloat16).save_pretrained(tmp_path)
    load = AutoModelForCausalLMWithValueHead.from_pretrained
    assert load(tmp_path).dtype == torch.float32
    assert load(tmp_path, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_unsupported_ways_of_loading_are_refused():
    with pytest.raises(ModelError, match=r"load_in_8bit.*quantization_config"):
        wrapped(load_in_8bit=True)
    with pytest.raises(ModelError, match="adapter already"):
        wrapped(get_peft_model(tiny_gpt2(), lora_config()), peft_config=lora_config())


# ------------------------------------------------------------ references


def test_a_reference_model_stays_while_the_model_learns():
    model = wrapped()
    reference = create_reference_model(model)
    before = weights(reference)
    trainer = trainer_of(model, reference)
    assert trainer.ref_model is reference
    trainer.step(*given())
    assert same(weights(reference), before)
    assert not same(weights(model), before)


def test_shared_layers_are_one_memory_and_frozen_in_both():
    model = wrapped()
    reference = create_reference_model(model, num_shared_layers=1)
    before = weights(model)
    trainer_of(model, reference).step(*given())
    mine, theirs = dict(model.named_parameters()), dict(reference.named_parameters())
    shared = {name for name in mine if mine[name].data_ptr() == theirs[name].data_ptr()}
    assert shared == {n for n in mine if ".wte." in n or ".wpe." in n or ".h.0." in n}
    changed = {name for name in mine if not torch.equal(mine[name], before[name])}
    assert changed == mine.keys() - shared
    with pytest.raises(ModelError, match="block number 9"):
        create_reference_model(model, num_shared_layers=9)


def test_under_an_adapter_the_reference_is_its_base():
    model = wrapped(peft_config=lora_config())
    shake_adapter(model)
    trainer = trainer_of(model, wrapped(tiny_gpt2(5)))  # given all the same, as published programs do
    assert trainer.ref_model is None
    assert "reference" not in model.pretrained_model.peft_config
    ids, answer = torch.tensor([QUERIES[0] + RESPONSES[0]]), slice(2, 4)
    stats = trainer.step(*given())
    expected = logits(tiny_gpt2(), ids[0].tolist())[0, answer].log_softmax(-1).gather(1, ids[0, 3:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(stats["objective/ref_logprobs"][0, :2]), expected, rtol=1e-4, atol=1e-4)
    assert stats["objective/kl"] != pytest.approx(0, abs=1e-2)


def test_models_that_cannot_be_told_apart_or_are_not_wrapped_are_refused():
    model = wrapped()
    with pytest.raises(ModelError, match="create_reference_model"):
        trainer_of(model, model)
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel.*from_pretrained"):
        trainer_of(tiny_gpt2())
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel.*create_reference_model"):
        trainer_of(model, tiny_gpt2())
    with pytest.raises(ModelError, match="torch_dtype"):
        trainer_of(wrapped(tiny_gpt2().half()))
