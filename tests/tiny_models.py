"""Tiny models with random weights and their tokenizers, made in the process: nothing is downloaded or kept.

Weights are drawn wide (std 0.2), since at the usual 0.02 the logits are nearly flat and every figure nearly rounding.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY, EOS = 61, 0


def word_tokenizer(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Words w1, w2, ... with ids 1, 2, ...; EOS has id 0, and there is no pad token."""
    words = {"<eos>": EOS} | {f"w{i}": i for i in range(1, vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def tiny_gpt2(seed: int = 0, *, vocabulary: int = VOCABULARY, **overrides) -> GPT2LMHeadModel:
    """Two layers, width 16; dropout as GPT-2 has it (0.1), so that a pass in training mode shows."""
    settings = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
    return _built(
        GPT2LMHeadModel,
        GPT2Config(vocab_size=vocabulary, bos_token_id=EOS, eos_token_id=EOS, **settings | overrides),
        seed,
    )


def _rope(vocabulary: int, overrides: dict) -> dict:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "attention_dropout": 0.1,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": None,
    } | overrides


def tiny_llama(seed: int = 0, *, vocabulary: int = VOCABULARY, **overrides) -> LlamaForCausalLM:
    """Rotary positions, grouped-query attention, head apart from the embeddings."""
    return _built(LlamaForCausalLM, LlamaConfig(**_rope(vocabulary, overrides)), seed)


def tiny_qwen2(seed: int = 0, *, vocabulary: int = VOCABULARY, **overrides) -> Qwen2ForCausalLM:
    """As tiny_llama, with biases and a head tied to the embeddings."""
    return _built(Qwen2ForCausalLM, Qwen2Config(**_rope(vocabulary, {"tie_word_embeddings": True} | overrides)), seed)


def _built(architecture: type, config, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = architecture(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # biases start at 0 and norms at 1: move them, so that none is a special case
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
