"""The policy: its value head, its LoRA adapter, its reference, and the folder it is saved to."""

from __future__ import annotations

import pytest
import torch
from tiny_models import (
    one_thread,  # noqa: F401
    tiny_gpt2,
    tiny_llama,
    tiny_qwen2,
    tiny_trainer,
    word_tokenizer,
)
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rlhf_lib.errors import ModelError
from rlhf_lib.models.critic import ValueHead
from rlhf_lib.models.policy import Policy, trunk_and_head
from rlhf_lib.recipe import LoraConfig

LORA = LoraConfig(r=4, alpha=8)
IDS = torch.tensor([[5, 9, 2, 0, 7]])


@pytest.fixture(params=[tiny_gpt2, tiny_llama, tiny_qwen2], ids=lambda build: build.__name__.removeprefix("tiny_"))
def model(request):
    return request.param()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


def test_value_head_starts_at_zero_and_is_the_linear_map_by_hand():
    head = ValueHead(3)
    states = torch.tensor([[[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]]])
    assert head(states).tolist() == [[0.0, 0.0]]
    with torch.no_grad():
        head.summary.weight.copy_(torch.tensor([[1.0, -1.0, 2.0]]))
        head.summary.bias.fill_(0.5)
    assert head(states).tolist() == [[5.5, 2.0]]


def test_value_head_stays_in_fp32_under_autocast():
    head = ValueHead(3)
    torch.nn.init.constant_(head.summary.weight, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = head(torch.tensor([[1.0, 2**-12, 0.0]]))
    assert values.dtype == torch.float32
    assert values.item() == 1 + 2**-12  # bf16 would round it off


def test_full_fine_tuning_learns_everything_but_the_reference(model):
    parameters = {id(p) for p in model.parameters()}
    policy = Policy(model)
    assert {id(p) for p in policy.trainable()} == parameters | {id(p) for p in policy.v_head.parameters()}
    with policy.reference() as reference:
        assert reference is not model
        assert not any(p.requires_grad for p in reference.parameters())
        assert not {id(p) for p in reference.parameters()} & parameters
        assert torch.equal(logits(reference), logits(model))


def test_a_reference_may_be_given():
    model, other = tiny_gpt2(), tiny_gpt2(1)
    expected = logits(other)
    with Policy(model, reference=other).reference() as reference:
        assert torch.equal(logits(reference), expected)
    assert not torch.equal(logits(model), expected)


def test_lora_learns_the_adapter_and_the_value_head_alone(model):
    before = logits(model)
    policy = Policy(model, LORA)
    names = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in name or name.startswith("v_head.") for name in names)
    assert torch.equal(logits(policy.model), before)  # B starts at 0


def test_the_reference_of_lora_is_the_model_with_the_adapter_off(model):
    before = logits(model)
    policy = Policy(model, LORA)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(logits(policy.model), before, atol=1e-2)
    with policy.reference() as reference:
        assert torch.equal(logits(reference), before)
    assert not torch.allclose(logits(policy.model), before, atol=1e-2)  # and back on


def test_lora_has_no_dropout_in_ppo():
    policy = Policy(tiny_gpt2(), LoraConfig(r=4, dropout=0.5)).train()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1.0)
    dropouts = [m for n, m in policy.named_modules() if "lora_dropout" in n and isinstance(m, torch.nn.Dropout)]
    assert not dropouts


def test_dora_trains_its_magnitudes():
    names = {n for n, p in Policy(tiny_llama(), LoraConfig(r=4, dora=True)).named_parameters() if p.requires_grad}
    assert any("lora_magnitude_vector" in name for name in names)


def test_unknown_lora_targets_are_named():
    with pytest.raises(ModelError, match=r"no_such_layer.*policy\.lora\.target_modules"):
        Policy(tiny_gpt2(), LoraConfig(r=4, target_modules=["no_such_layer"]))


def test_trunk_and_head_make_the_models_own_logits(model):
    trunk, head = trunk_and_head(model)
    with torch.no_grad():
        torch.testing.assert_close(head(trunk(input_ids=IDS).last_hidden_state), logits(model))


@pytest.mark.parametrize("lora", [None, LORA, LoraConfig(r=4, dora=True)], ids=["full", "lora", "dora"])
def test_the_saved_folder_is_an_ordinary_model_with_the_same_logits(model, lora, tmp_path):
    trainer = tiny_trainer(model, lora=lora, learning_rate=0.05)
    trainer.train_step()
    expected = logits(trainer.policy.model)
    trainer.policy.save_pretrained(tmp_path, trainer.tokenizer)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected, rtol=1e-4, atol=1e-4)
    assert not list(tmp_path.glob("adapter*"))
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path)("w5 w9").input_ids == word_tokenizer()("w5 w9").input_ids
    # merging was done on a copy: the run can go on
    assert torch.equal(logits(trainer.policy.model), expected)
    trainer.train_step()
