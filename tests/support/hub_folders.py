"""What the pages of the documentation name of the hub, as folders of their ids: tiny models, a few texts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from chat_models import chat_folder
from datasets import Dataset
from tiny_models import tiny_gpt2, tiny_t5
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerBase

from rlhf_lib.data.embedded import load
from rlhf_lib.training.scratch import train_tokenizer


@cache
def _tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(load("train[:300]")["chosen"], 600)


def lay_out_hub(folder: Path) -> None:
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    gpt2 = tiny_gpt2(vocabulary=len(tokenizer), n_positions=256)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=16, hidden_dim=32, n_layers=1, n_heads=2, id2label={0: "NEGATIVE", 1: "POSITIVE"}
    )
    for name, model in {
        "gpt2": gpt2,
        "google/flan-t5-small": tiny_t5(vocabulary=len(tokenizer)),
        "lvwerra/gpt2-imdb": gpt2,
        "lvwerra/distilbert-imdb": DistilBertForSequenceClassification(config),
    }.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    chat_folder(folder / "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2", max_position_embeddings=512)
    (folder / "stanfordnlp/imdb").mkdir(parents=True)
    rows = [{"text": text.strip() * 2, "label": 0} for text in load("train[:300]")["chosen"]]
    Dataset.from_list(rows).to_json(folder / "stanfordnlp/imdb/train.jsonl")
