"""Supervised training of a seq2seq model: the encoder reads the prompt, the decoder learns the answer and EOS.

The small one from scratch is a T5 as flan-t5 is (Raffel et al. 2020; gated GELU: Shazeer 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from rlhf_lib.training.supervised import LengthGroups

if TYPE_CHECKING:
    from peft import PeftConfig

    from rlhf_lib.recipe import FromScratchConfig


def scratch_t5(size: FromScratchConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> T5ForConditionalGeneration:
    """A T5 with random weights, `size.layers` blocks in the encoder and as many in the decoder, without dropout.

    Its head is apart from its embeddings, and the decoder starts from the pad token.
    """
    set_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=size.width,
        d_kv=size.width // size.heads,
        d_ff=4 * size.width,
        num_layers=size.layers,
        num_heads=size.heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{"tie_word_embeddings": False, "decoder_start_token_id": tokenizer.pad_token_id},
    )
    config.dense_act_fn = "gelu_pytorch_tanh"  # gelu_new in one kernel
    model = T5ForConditionalGeneration(config)
    # Transformers ties the head in a new T5 whatever the configuration says; in a folder, different weights stay apart.
    # At the embeddings' scale of 1 the first logits would be in the tens.
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * size.width**-0.5)
    return model


def tokenize_answers(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, limit: int, columns: Sequence[str]
) -> tuple[Dataset, int]:
    """Rows `input_ids` (the prompt), `labels` (the answer in one of the `columns`, and EOS) and `length` of both
    together, and how many lost tokens on the left to fit `limit`: prompts first."""
    prompts = tokenizer(list(pairs["prompt"]), verbose=False).input_ids if len(pairs) else []
    rows: list[dict] = []
    truncated = 0
    for column in columns:
        texts = list(pairs[column])
        answers = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []
        for prompt, answer in zip(prompts, answers, strict=True):
            labels = [*answer, tokenizer.eos_token_id][-(limit - 1) :]
            ids = (prompt or [tokenizer.eos_token_id])[-(limit - len(labels)) :]
            truncated += len(prompt) + len(answer) + 1 > limit
            rows.append({"input_ids": ids, "labels": labels, "length": len(ids) + len(labels)})
    return Dataset.from_list(rows), truncated


def seq2seq_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    arguments: dict[str, Any],
    adapter: PeftConfig | None = None,
) -> Seq2SeqTrainer:
    """Transformers' trainer on rows of `tokenize_answers`, with the `arguments` of `trainer_arguments`."""
    pad = DataCollatorForSeq2Seq(tokenizer, model=model)

    def collate(batch: list[dict[str, Any]]) -> Any:
        return pad([{name: row[name] for name in ("input_ids", "labels")} for row in batch])

    class LengthGroupedSeq2SeqTrainer(LengthGroups, Seq2SeqTrainer):
        pass

    if adapter is not None:
        from peft import get_peft_model

        model = get_peft_model(model, adapter)  # type: ignore[assignment]
    # max_length is TRL's; these rows are cut already
    settings = {name: value for name, value in arguments.items() if name != "max_length"}
    return LengthGroupedSeq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**settings),
        train_dataset=rows,
        data_collator=collate,
        processing_class=tokenizer,
    )
