"""Supervised fine-tuning: a language model, given or new, learns the answers of a corpus or of the preference pairs.

A causal model's text is prompt + answer + EOS. Prompt and answer are tokenized apart, so that the model learns the very
boundary that it meets when it continues a prompt. A chat model's is the conversation in its template, with a loss on
what the assistant says. A seq2seq model's encoder reads the prompt, and its decoder learns the answer and EOS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    set_seed,
)

from rlhf_lib.conversation import Conversation, prompts_of
from rlhf_lib.errors import DataError, ModelError
from rlhf_lib.models.chat import split_ids, training_ids, turn_end
from rlhf_lib.models.device import pick_device
from rlhf_lib.models.loading import load_policy, load_tokenizer, positions, quiet
from rlhf_lib.models.logprobs import response_logprobs
from rlhf_lib.recipe import ComputeConfig
from rlhf_lib.training.scratch import scratch_model, scratch_t5
from rlhf_lib.training.supervised import LengthGroups, OnLog, fit, trainer_arguments

if TYPE_CHECKING:
    from peft import PeftConfig

    from rlhf_lib.recipe import LoraConfig, TrainConfig


SMALL_LOGITS = 1 << 25  # of a batch: 128 MB in fp32
HELD_OUT = 512  # answers that the held-out loss is taken over, at most


def train_base_model(
    pairs: Dataset,
    output: str | Path,
    *,
    train: TrainConfig,
    compute: ComputeConfig | None = None,
    seed: int = 0,
    model: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    lora: LoraConfig | None = None,
    held_out: Dataset | None = None,
    trust_remote_code: bool = False,
    on_log: OnLog | None = None,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Train on the answers of `pairs` (columns prompt, chosen, perhaps rejected); save an HF folder.

    Causal models with TRL's SFTTrainer, seq2seq models with transformers' Seq2SeqTrainer.

    From scratch (`train.from_scratch`) with the given `tokenizer`, or from `model`, whose tokenizer is used where none
    is given. With `lora` an adapter is trained and merged before saving. Texts longer than `train.max_length` lose
    tokens on the left, so that answers stay whole. `compute`: device and precision; by default a GPU if there is one.
    `on_log(step, metrics)` is called as training goes on.

    Returns the metrics (`loss/held_out` in nats per token of the chosen answers given their prompts, EOS included, and
    its exponential `perplexity/held_out`) and the logged metrics per step.
    Raises ModelError for an absent model or a loss that diverges, DataError without a single answer to train on.
    """
    if absent := {"prompt", "chosen"} - set(pairs.column_names):
        raise DataError(
            f"the answers to train on have no column {' and no column '.join(sorted(absent))}, but "
            f"{', '.join(pairs.column_names)}: name the columns prompt and chosen (the answer), with "
            "dataset.rename_columns({...})"
        )
    compute = compute or ComputeConfig()
    if train.from_scratch is not None:
        if tokenizer is None:
            raise ModelError(
                "a model from scratch needs a tokenizer: give one, rlhf_lib.training.scratch.train_tokenizer"
            )
        build = scratch_t5 if train.from_scratch.architecture == "t5" else scratch_model
        network: PreTrainedModel = build(train.from_scratch, tokenizer, seed)
    else:
        if model is None:
            raise ModelError("there is no model to train: give model, a hub id or folder, or set train.from_scratch")
        tokenizer = tokenizer or load_tokenizer(model, trust_remote_code)
        network = load_policy(model, trust_remote_code=trust_remote_code)
        rows_there: int = network.get_input_embeddings().weight.shape[0]  # type: ignore[index,assignment]
        if len(tokenizer) > rows_there:  # control tokens of another chat template
            network.resize_token_embeddings(len(tokenizer))
    longest = train.from_scratch.positions if train.from_scratch else positions(network.config)
    limit = min(train.max_length or longest, longest)
    answers = ("chosen", "rejected") if train.answers == "both" and "rejected" in pairs.column_names else ("chosen",)
    seq2seq = network.config.is_encoder_decoder
    if seq2seq:
        rows, truncated = tokenize_seq2seq(pairs, tokenizer, limit, answers)
    else:
        rows, truncated = tokenize_answers(pairs, tokenizer, limit, answers, train.completion_only)
    if not len(rows):
        raise DataError("no text to train the base model on: are data.corpus or data.preferences empty?")

    set_seed(seed)
    with TemporaryDirectory() as scratch:
        arguments = trainer_arguments(train, len(rows), compute, seed, Path(scratch) / "base model", schedule="cosine")
        adapter = _peft(lora, "SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM") if lora else None
        build_trainer = seq2seq_trainer if seq2seq else _causal_trainer
        trainer = build_trainer(network, tokenizer, rows, arguments, adapter)
        log = fit(trainer, on_log)
    trained: Any = trainer.model
    if lora:
        trained = trained.merge_and_unload()

    metrics = {"rows": float(len(rows)), "truncated": float(truncated), "tokens": float(sum(rows["length"]))}
    metrics |= {"parameters": float(trained.num_parameters())}
    if log:
        metrics["loss/train"] = log[-1]["loss"]
    if held_out is not None and len(held_out):
        loss = answer_loss(trained.to(pick_device(compute)), tokenizer, held_out, limit)
        metrics |= {"loss/held_out": loss, "perplexity/held_out": math.exp(min(loss, 50.0))}
    save(trained, tokenizer, Path(output))
    return metrics, log


def _causal_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    arguments: dict[str, Any],
    adapter: PeftConfig | None,
) -> Trainer:
    from trl import SFTConfig, SFTTrainer

    class LengthGroupedSFTTrainer(LengthGroups, SFTTrainer):
        def compute_loss(self, model: Any, inputs: dict, *args: Any, **kwargs: Any) -> Any:
            """TRL computes logits in chunks, twice, with metrics of its own; for small batches the plain loss is far
            cheaper."""
            small = inputs["input_ids"].numel() * model.config.vocab_size <= SMALL_LOGITS
            return (Trainer if small else SFTTrainer).compute_loss(self, model, inputs, *args, **kwargs)

    model.loss_type = model.loss_type or "ForCausalLM"  # GPT-2's class name doesn't say so
    return LengthGroupedSFTTrainer(
        model=model, args=SFTConfig(**arguments), train_dataset=rows, processing_class=tokenizer, peft_config=adapter
    )


def tokenize_answers(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, limit: int, columns: Sequence[str], completion_only: bool
) -> tuple[Dataset, int]:
    """Rows `input_ids`, `labels` (-100: no loss) and `length`, of the answers in each of the `columns`, and how many
    lost tokens on the left to fit `limit`."""
    rows: list[dict] = []
    truncated = 0
    if tokenizer.chat_template is not None:
        asked = conversations_of(pairs)
        told = [prompt.answered(text) for column in columns for prompt, text in zip(asked, pairs[column], strict=True)]
        for ids, mask in training_ids(tokenizer, told, last_only=completion_only):
            labels = [token if said else -100 for token, said in zip(ids, mask, strict=True)]
            truncated += len(ids) > limit
            rows.append({"input_ids": ids[-limit:], "labels": labels[-limit:], "length": min(len(ids), limit)})
        return Dataset.from_list(rows), truncated
    prompts = tokenizer(list(pairs["prompt"]), verbose=False).input_ids if len(pairs) else []
    for column in columns:
        texts = list(pairs[column])
        endings = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []
        for prompt, answer in zip(prompts, endings, strict=True):
            ids = [*prompt, *answer, tokenizer.eos_token_id]
            labels = [-100] * len(prompt) + ids[len(prompt) :] if completion_only else ids
            truncated += len(ids) > limit
            rows.append({"input_ids": ids[-limit:], "labels": labels[-limit:], "length": min(len(ids), limit)})
    return Dataset.from_list(rows), truncated


def conversations_of(pairs: Dataset) -> list[Conversation]:
    """The pairs' prompts, of which those that are plain text become conversations."""
    return [Conversation.of(prompt) for prompt in prompts_of(pairs, "prompt")]


def answer_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Dataset, limit: int) -> float:
    """Mean negative log-likelihood, nats per token, of chosen answers with EOS given their prompts, cut from the left.

    Over at most HELD_OUT pairs, spread evenly; every token weighs the same.
    """
    step = max(1, math.ceil(len(pairs) / HELD_OUT))
    sample = pairs.select(range(0, len(pairs), step))
    if tokenizer.chat_template is not None:
        prompts, answers = split_ids(tokenizer, conversations_of(sample), list(sample["chosen"]))
    else:
        prompts = tokenizer(list(sample["prompt"]), verbose=False).input_ids
        answers = [
            [*ids, tokenizer.eos_token_id]
            for ids in tokenizer(list(sample["chosen"]), add_special_tokens=False, verbose=False).input_ids
        ]
    # At least one token of the prompt stays: the answer's first token is predicted from it.
    answers = [a[-(limit - 1) :] for a in answers]
    prompts = [(p or [tokenizer.eos_token_id])[-(limit - len(a)) :] for p, a in zip(prompts, answers, strict=True)]
    order = sorted(range(len(sample)), key=lambda i: len(prompts[i]) + len(answers[i]))
    logprobs = response_logprobs(
        model.eval(), [prompts[i] for i in order], [answers[i] for i in order], micro_batch_tokens=8192
    )
    return -torch.cat(logprobs).mean().item()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save an ordinary Hugging Face folder whose generation config has the tokenizer's EOS and pad tokens, and the end
    of a turn in its chat template."""
    if model.generation_config is None:
        raise ModelError(f"{type(model).__name__} can't generate: point to a language model")
    known = model.generation_config.eos_token_id
    ends = known if isinstance(known, list) else [known]
    if tokenizer.chat_template is not None:
        found = dict.fromkeys(i for i in (turn_end(tokenizer), tokenizer.eos_token_id, *ends) if i is not None)
        model.generation_config.eos_token_id = list(found)
    elif tokenizer.eos_token_id not in ends:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = True  # trainers switch it off in the configuration
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _peft(lora: LoraConfig, task_type: str) -> PeftConfig:
    import peft

    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_dora=lora.dora,
        task_type=task_type,
    )


def tokenize_seq2seq(
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
    """Transformers' trainer on rows of `tokenize_seq2seq`, with the `arguments` of `trainer_arguments`."""
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
