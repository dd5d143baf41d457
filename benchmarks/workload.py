"""The published workload that both sides of `speed.py` run: GPT-2 of 124M parameters steered by a DistilBERT-size text
reward; batches of 128, queries of 2 to 7 tokens, responses of 4 to 15, 4 PPO epochs. Weights are random: what they say
costs no time.

Imports nothing but what both environments have.
"""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

BATCH, EPOCHS, LEARNING_RATE = 128, 4, 1.41e-5
QUERY, RESPONSE = (2, 8), (4, 16)  # LengthSampler's, the maximum exclusive
LORA = {"r": 32, "lora_alpha": 32}
GPT2: dict[str, dict[str, Any]] = {
    "gpt2": {},  # the configuration's defaults: 12 blocks of 768, 50,257 tokens
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "mini": {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 8192},  # that of learning.py
    "tiny": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 1000},  # to test the benchmark itself
}

CLASSIFIER = {
    "mini": {"dim": 192, "n_layers": 2, "n_heads": 3, "hidden_dim": 768},
    "tiny": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64},
}


def prepare(folder: Path, size: str) -> None:
    """Write policy/, classifier/ (with a tokenizer of words each) and prompts.json to the folder."""
    torch.manual_seed(0)
    policy = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **GPT2[size]))
    policy.save_pretrained(folder / "policy")
    words = policy.config.vocab_size
    small = CLASSIFIER.get(size, {})
    classifier = DistilBertConfig(vocab_size=min(30522, words), id2label={0: "NEGATIVE", 1: "POSITIVE"}, **small)
    DistilBertForSequenceClassification(classifier).save_pretrained(folder / "classifier")
    for name, size_ in (("policy", words), ("classifier", classifier.vocab_size)):
        vocabulary = {f"w{i}": i for i in range(size_ - 1)} | {"<end>": size_ - 1}
        model = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
        model.pre_tokenizer = WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=model,
            eos_token="<end>",
            pad_token="<end>",
            model_input_names=["input_ids", "attention_mask"],
        )
        tokenizer.save_pretrained(folder / name)
    rng = random.Random(0)
    prompts = [[rng.randrange(words - 1) for _ in range(rng.randrange(*QUERY))] for _ in range(4096)]
    (folder / "prompts.json").write_text(json.dumps(prompts))
