"""Stand-ins for the published chat models: the same classes and kinds of tokenizer, the published chat templates, under
the same ids in a Hugging Face hub cache."""

from __future__ import annotations

from pathlib import Path
from random import Random

import standin_texts as texts
from standins import JUDGE_STEPS, WIDTH, _labels, _lay, _learn_labels, _learn_language, _lines
from transformers import (
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from tests.support.chat_models import template

START, END, TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
STEPS = 60  # until most answers end
SIZE = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def lay_models(cache: Path) -> None:
    """Policies and a reward model, into the hub cache that is the folder `cache`."""
    rng = Random(8)
    asked = [(texts.ask(rng), texts.answer(rng, i % 2 == 1), i % 2) for i in range(600)]

    qwen = _tokenizer(Qwen2Tokenizer, "qwen2_5", asked, pad=TEXT)
    config = Qwen2Config(**SIZE, **_special(qwen))
    policy = _learn_language(Qwen2ForCausalLM, config, qwen, _rendered(qwen, asked), STEPS)
    policy.generation_config.eos_token_id = qwen.convert_tokens_to_ids([END, TEXT])
    _lay(cache, "Qwen/Qwen2.5-0.5B-Instruct", policy, qwen)

    smol = _tokenizer(GPT2Tokenizer, "smollm2", asked, pad=END, bos_token=START)
    config = LlamaConfig(**SIZE, **_special(smol))
    policy = _learn_language(LlamaForCausalLM, config, smol, _rendered(smol, asked), STEPS)
    _lay(cache, "HuggingFaceTB/SmolLM2-135M-Instruct", policy, smol)

    skywork = _tokenizer(Qwen2Tokenizer, "qwen3", asked, pad=TEXT)
    scorer = Qwen3Config(**SIZE, head_dim=8, **_special(skywork), **_labels(["LABEL_0"]))
    rows = [(text, None, good) for text, (_, _, good) in zip(_rendered(skywork, asked), asked, strict=True)]
    judge = _learn_labels(Qwen3ForSequenceClassification, scorer, skywork, rows, JUDGE_STEPS)
    _lay(cache, "Skywork/Skywork-Reward-V2-Qwen3-0.6B", judge, skywork)


def _tokenizer(
    kind: type, name: str, asked: list[tuple[str, str, int]], pad: str, **special
) -> PreTrainedTokenizerBase:
    """Byte-level BPE of the class `kind`, with control tokens and a template."""
    lines = [text for question, answer, _ in asked for text in (question, answer)]
    tokenizer = kind().train_new_from_iterator(_lines(lines), 900, new_special_tokens=[START, END], show_progress=False)
    tokenizer.add_special_tokens({"eos_token": END, "pad_token": pad, **special})
    tokenizer.chat_template = template(name)
    return tokenizer


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in names}


def _rendered(tokenizer: PreTrainedTokenizerBase, asked: list[tuple[str, str, int]]) -> list[str]:
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], tokenize=False
        )
        for question, answer, _ in asked
    ]
