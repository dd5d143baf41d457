"""Small chat models: random weights, a tokenizer of their own, and the chat templates that published models have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import trl
from tiny_models import tiny_llama
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.models.chat import turn_end
from rlhf_lib.recipe.chat_template import read_template
from rlhf_lib.training.scratch import train_tokenizer

TEMPLATES = ("qwen2_5", "qwen3", "llama3", "gemma", "phi3")  # as TRL carries them
TEXTS = (
    "Hello, how are you today?",
    "My order hasn't come yet, and I would like to know where it is.",
    "I'm sorry to hear that. Could you tell me the number of your order?",
    "Thank you. What is the capital of France? The capital of France is Paris.",
    "You are a helpful assistant. system user assistant model",
)
ODD = (  # role marks of its own, no control tokens; and no system turns
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('No system turns') }}{% endif %}"
    "{{ '>>> ' + message['role'].upper() + ': ' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '>>> ASSISTANT: ' }}{% endif %}"
)


def template(name: str) -> str:
    """A published template, as TRL carries it; one that comes with rlhf; or `odd`."""
    if name == "odd":
        return ODD
    file = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    return file.read_text() if file.is_file() else read_template(name)


def chat_tokenizer(name: str, texts: Iterable[str] = TEXTS, vocabulary: int = 600) -> PreTrainedTokenizerBase:
    """A byte-level BPE with the template and the control tokens that it writes; pad and EOS differ."""
    jinja = template(name)
    tokenizer = train_tokenizer(texts, vocabulary)
    control = sorted(set(re.findall(r"<\|\w+\|>|<\w+_of_turn>", jinja)) - set(tokenizer.all_special_tokens))
    tokenizer.add_special_tokens({"extra_special_tokens": control})
    tokenizer.chat_template = jinja
    return tokenizer


def chat_model(tokenizer: PreTrainedTokenizerBase, seed: int = 0, **overrides) -> PreTrainedModel:
    """A tiny Llama whose generation config ends answers with the end of a turn and with EOS."""
    model = tiny_llama(seed, vocabulary=len(tokenizer), **{"max_position_embeddings": 256} | overrides)
    ends = [i for i in (turn_end(tokenizer), tokenizer.eos_token_id) if i is not None]
    model.generation_config.eos_token_id = list(dict.fromkeys(ends))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def chat_folder(folder: Path, name: str = "qwen2_5", seed: int = 0, **overrides) -> Path:
    """Such a model and its tokenizer, saved."""
    tokenizer = chat_tokenizer(name)
    chat_model(tokenizer, seed, **overrides).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
