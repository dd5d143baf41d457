"""Tiny models behind TRL 0.11's interface, and responses given to them."""

from __future__ import annotations

import torch
from peft import LoraConfig
from tiny_models import tiny_gpt2, tiny_t5, word_tokenizer
from transformers import PreTrainedModel

from rlhf_lib.trl_compat import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

QUERIES = [[5, 9, 2], [7], [3, 0, 11, 4], [8, 8]]
RESPONSES = [[4, 6], [12, 1, 9, 0], [2], [10, 3, 0]]
SCORES = [1.0, -0.5, 0.25, 2.0]


def wrapped(model=None, **kwargs) -> AutoModelForCausalLMWithValueHead:
    torch.manual_seed(0)
    return AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2() if model is None else model, **kwargs)


def trainer_of(model=None, ref_model=None, **settings) -> PPOTrainer:
    extra = {
        name: settings.pop(name)
        for name in ("optimizer", "lr_scheduler", "dataset", "data_collator", "log")
        if name in settings
    }
    config = PPOConfig(**{"batch_size": 4, "mini_batch_size": 4, "learning_rate": 1e-2} | settings)
    return PPOTrainer(config, wrapped() if model is None else model, ref_model, word_tokenizer(), **extra)


def given(scores=SCORES) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    return [torch.tensor(q) for q in QUERIES], [torch.tensor(r) for r in RESPONSES], [torch.tensor(s) for s in scores]


def lora_config() -> LoraConfig:
    """The parity fixture's, but for the dropout: it must have no effect."""
    return LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )


def shake_adapter(model) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))


def started_t5() -> PreTrainedModel:
    """A seq2seq model whose decoder starts with an id of its own, not with EOS."""
    return tiny_t5(decoder_start_token_id=60, pad_token_id=60, eos_token_id=0)


def logits(model, ids: list[int] = QUERIES[2]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits
