"""A text classifier from labelled texts: cross-entropy where every text has one label, else each label apart.

Texts come tokenized by `encode_answers`, the very function that scoring uses: special tokens kept, cut from the left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from rlhf_lib.conversation import prompts_of
from rlhf_lib.errors import DataError
from rlhf_lib.models.device import pick_device
from rlhf_lib.models.loading import distinct_pad, load_classifier, load_tokenizer, positions, quiet
from rlhf_lib.rewards.classifier import ClassifierReward, encode_answers
from rlhf_lib.training.scratch import init_std
from rlhf_lib.training.supervised import LengthGroups, OnLog, fit, trainer_arguments

if TYPE_CHECKING:
    from rlhf_lib import recipe

BOS, PAD, EOS = "<s>", "<pad>", "</s>"  # ids 0, 1, 2, as RoBERTa's


def train_classifier(
    rows: Dataset,
    names: Sequence[str],
    output: Path,
    *,
    reward: recipe.RewardConfig,
    compute: recipe.ComputeConfig,
    seed: int,
    held_out: Dataset | None = None,
    on_log: OnLog | None = None,
) -> tuple[dict[str, float], list[dict[str, float]], list[dict[str, Any]]]:
    """Train on `rows` (columns text and labels, a list of indices in `names`) and save it with its tokenizer. Where the
    texts are answers (columns prompt and completion), conversations are read in its tokenizer's own chat template.

    From scratch (`reward.train.from_scratch`, its tokenizer made from the texts), or with a new head on
    `reward.model`. `on_log(step, metrics)` is called as training goes on. Returns the metrics, the logged metrics, and
    what `measure` says of each label. Raises ModelError for an absent model or a loss that diverges, DataError without
    a text.
    """
    if not len(rows):
        raise DataError("no text to train the classifier on: is data.labelled empty?")
    parts = [rows, held_out] if held_out is not None and len(held_out) else [rows]
    single = all(len(labels) == 1 for part in parts for labels in part["labels"])
    settings: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "single_label_classification" if single else "multi_label_classification",
    }
    set_seed(seed)
    if reward.train.from_scratch is not None:
        size = reward.train.from_scratch
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(rows["text"], size.vocab_size, size.positions)
        network: PreTrainedModel = scratch_classifier(size, tokenizer, settings)
        start_at_shares(network, list(rows["labels"]), single=single)
    else:
        if reward.model is None:
            raise ValueError("needs reward.model, or reward.train.from_scratch")
        tokenizer = load_tokenizer(reward.model, reward.trust_remote_code, need_eos=False)
        network = load_classifier(
            reward.model, trust_remote_code=reward.trust_remote_code, num_labels=len(names), **settings
        )
        distinct_pad(tokenizer, network)
    limit = min(reward.train.max_length or reward.max_length or 1 << 20, positions(network.config))
    tokenized, truncated = tokenize_texts(rows, len(names), tokenizer, limit, single=single)

    with TemporaryDirectory() as scratch:
        arguments = trainer_arguments(
            reward.train, len(rows), compute, seed, Path(scratch) / "classifier", schedule="linear"
        )
        log = fit(_trainer(network, tokenizer, tokenized, arguments), on_log)

    if hasattr(network.config, "use_cache"):
        network.config.use_cache = True
    with quiet():
        network.save_pretrained(output)
    tokenizer.save_pretrained(output)
    metrics = {"rows": float(len(rows)), "truncated": float(truncated), "tokens": float(sum(tokenized["length"]))}
    metrics |= {"parameters": float(network.num_parameters())}
    if log:
        metrics["loss/train"] = log[-1]["loss"]
    table: list[dict[str, Any]] = []
    if len(parts) == 2:
        logits = ClassifierReward(
            network,
            tokenizer,
            label=names[0],
            max_length=limit,
            batch_size=reward.batch_size,
            device=pick_device(compute),
        ).logits(*_read(parts[1]))
        found, table = measure(logits.numpy(), list(parts[1]["labels"]), names, single=single)
        most = int(np.bincount([i for labels in rows["labels"] for i in labels], minlength=len(names)).argmax())
        found["majority"] = float(np.mean([most in labels for labels in parts[1]["labels"]]))
        metrics |= {f"{name}/held_out": value for name, value in found.items()}
    return metrics, log, table


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as RoBERTa's, made from the texts: <s> text </s>, with a pad token.

    `vocab_size` counts the special tokens and the 256 bytes; a small corpus may fill less of it. `max_length`: tokens
    that the model it is for can take.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS, PAD, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A {EOS} {EOS} $B {EOS}", special_tokens=[(BOS, 0), (EOS, 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        cls_token=BOS,
        pad_token=PAD,
        eos_token=EOS,
        sep_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def scratch_classifier(
    size: recipe.ClassifierFromScratchConfig, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]
) -> RobertaForSequenceClassification:
    """A RoBERTa with random weights from the current seed; `settings` of its configuration, labels included."""
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int), "the tokenizer is ours"
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            max_position_embeddings=size.positions + pad + 1,  # positions are numbered from pad + 1
            type_vocab_size=1,
            initializer_range=init_std(size.width),
            hidden_dropout_prob=size.dropout,
            attention_probs_dropout_prob=size.dropout,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
            **settings,
        )
    )


def start_at_shares(model: PreTrainedModel, labels: Sequence[Sequence[int]], *, single: bool) -> None:
    """Set the bias of the head so that the probabilities start at the labels' shares (Lin et al. 2017, 4.1). In place.

    Without it the first hundreds of steps go by learning that most labels are rare.
    """
    head: Any = model.classifier
    bias = head.out_proj.bias
    counts = np.bincount([i for own in labels for i in own], minlength=len(bias))
    shares = torch.tensor((counts + 0.5) / (len(labels) + 1), dtype=bias.dtype)
    with torch.no_grad():
        bias.copy_(shares.log() if single else shares.logit())


def tokenize_texts(
    rows: Dataset, count: int, tokenizer: PreTrainedTokenizerBase, limit: int, *, single: bool
) -> tuple[Dataset, int]:
    """Rows of the tokenizer's columns, `labels` (a number, or `count` zeros and ones) and `length`, and how many texts
    lost tokens on the left to fit `limit`."""
    answers, prompts = _read(rows)
    asked = prompts or [""] * len(answers)
    columns: dict[str, list] = encode_answers(tokenizer, asked, answers, limit)
    whole = encode_answers(tokenizer, asked, answers, limit + 1)["input_ids"]
    columns["length"] = [len(ids) for ids in columns["input_ids"]]
    if single:
        columns["labels"] = [labels[0] for labels in rows["labels"]]
    else:
        columns["labels"] = [[float(i in labels) for i in range(count)] for labels in rows["labels"]]
    return Dataset.from_dict(columns), sum(len(ids) > limit for ids in whole)


def _read(rows: Dataset) -> tuple[list[str], list[str] | None]:
    """(the texts, None), or (the answers, their prompts)."""
    if "completion" not in rows.column_names:
        return list(rows["text"]), None
    return list(rows["completion"]), prompts_of(rows, "prompt")


def measure(
    logits_NK: NDArray, labels: Sequence[Sequence[int]], names: Sequence[str], *, single: bool
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of N texts' logits, and a row for each of the K labels.

    `accuracy`: share of the texts whose highest output is among their labels. `macro_f1`: mean F1 of the labels that
    occur or are given, each text being given its highest output, or where texts have several labels every one of a
    probability of 0.5 or more. Rows: label, texts that have it, the share of these whose highest output it is
    (accuracy; None without texts), precision, recall and f1.
    """
    top = logits_NK.argmax(1)
    truth_NK = np.zeros(logits_NK.shape, bool)
    for row, own in zip(truth_NK, labels, strict=True):
        row[list(own)] = True
    top_NK = np.eye(logits_NK.shape[1], dtype=bool)[top]
    given_NK = top_NK if single else logits_NK >= 0
    hits, given, true = (x.sum(0) for x in (truth_NK & given_NK, given_NK, truth_NK))
    f1 = 2 * hits / np.maximum(given + true, 1)
    table = [
        {
            "label": name,
            "texts": int(true[k]),
            "accuracy": float((truth_NK & top_NK)[:, k].sum() / true[k]) if true[k] else None,
            "precision": float(hits[k] / given[k]) if given[k] else None,
            "recall": float(hits[k] / true[k]) if true[k] else None,
            "f1": float(f1[k]),
        }
        for k, name in enumerate(names)
    ]
    metrics = {
        "accuracy": float(truth_NK[np.arange(len(top)), top].mean()),
        "macro_f1": float(f1[(given + true) > 0].mean()),
    }
    return metrics, table


def label_figure(table: Sequence[dict[str, Any]]) -> Figure:
    """Each label's accuracy as a bar, the most frequent label on top, with its number of held-out texts."""
    rows = sorted((row for row in table if row["texts"]), key=lambda row: row["texts"])
    figure = Figure(figsize=(6, 1.2 + 0.22 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([f"{row['label']} ({row['texts']:,})" for row in rows], [row["accuracy"] for row in rows], 0.8)
    axes.set_xlim(0, 1)
    axes.set_ylim(-1, len(rows))
    axes.set_xlabel("share of the label's held-out texts whose highest output it is")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, arguments: dict[str, Any]
) -> Trainer:
    pad = DataCollatorWithPadding(tokenizer)

    def collate(batch: list[dict[str, Any]]) -> Any:
        padded = pad([{k: v for k, v in row.items() if k not in ("labels", "length")} for row in batch])
        return padded | {"labels": torch.tensor([row["labels"] for row in batch])}

    class LengthGroupedTrainer(LengthGroups, Trainer):
        pass

    # max_length is TRL's; these rows are cut already
    settings = {name: value for name, value in arguments.items() if name != "max_length"}
    return LengthGroupedTrainer(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=rows,
        data_collator=collate,
        processing_class=tokenizer,
    )
