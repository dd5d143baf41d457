"""Scores from a sequence classifier that don't depend on the batch a text is in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.conversation import Conversation, in_full
from rlhf_lib.errors import ModelError
from rlhf_lib.models.chat import answer_ids
from rlhf_lib.models.loading import positions
from rlhf_lib.progress import report


class ClassifierReward:
    """Score query + response with one output of a classifier: its logit, or its probability. Of a conversation it
    reads what its tokenizer's chat template makes of it, or without one the dialogue as text.

    `pair` encodes (query, response) as the two segments of a pair instead. `append_eos` ends each text with the
    tokenizer's EOS, as preference models are trained here; of sampled responses, those alone that `ended`. Texts
    longer than `max_length` tokens, or than the model's positions, are cut from the left. A probability is a softmax
    over the outputs, or a sigmoid where there is one output or the model says problem_type
    multi_label_classification; `softmax` is one whatever the model says.

    Raises ModelError for a label that the classifier doesn't have, or for none where it has several.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        label: str | None = None,
        output: Literal["logit", "probability", "softmax"] = "logit",
        pair: bool = False,
        append_eos: bool = False,
        max_length: int | None = None,
        batch_size: int = 64,
        device: torch.device | str | None = None,
    ) -> None:
        self.column = label_column(model.config, label)
        self.model = model.eval().to(device or model.device)
        self.tokenizer = tokenizer
        self.output = output
        self.pair = pair
        self.append_eos = self.reads_ends = append_eos
        self.max_length = min(max_length or positions(model.config), positions(model.config))
        self.batch_size = batch_size
        # Classifiers made of decoders read their logits at the last token that isn't the pad token, and refuse batches
        # without one. We read them at the last token by length, so the pad id only has to be there.
        self.pad_id = model.config.get_text_config().pad_token_id
        if self.pad_id is None:
            self.pad_id = tokenizer.pad_token_id or 0
            model.config.get_text_config().pad_token_id = self.pad_id
        self.per_token_head = getattr(model, "score", None)

    def __call__(self, queries: list[str], responses: list[str], *, ended: Sequence[bool] | None = None) -> list[float]:
        """One score per (query, response). `ended`: which responses are whole rather than cut off; None: all."""
        if not responses:
            return []
        if self.pair:
            rows = encode(self.tokenizer, queries, self.max_length, pairs=responses)
        else:
            rows = encode_answers(
                self.tokenizer, queries, responses, self.max_length, append_eos=self.append_eos, ended=ended
            )
        return self._chosen(self._logits(rows)).tolist()

    def logits(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> Tensor:
        """Every output for N texts, or for N answers to prompts: (N, K), fp32, on the CPU."""
        asked = [""] * len(texts) if prompts is None else prompts
        return self._logits(encode_answers(self.tokenizer, asked, texts, self.max_length, append_eos=self.append_eos))

    def _logits(self, rows: dict[str, list[list[int]]]) -> Tensor:
        """As `logits`, in batches of like length."""
        order = sorted(range(len(rows["input_ids"])), key=lambda i: len(rows["input_ids"][i]))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        outputs, done = [], 0
        for batch in batches:
            outputs.append(self._outputs({key: [values[i] for i in batch] for key, values in rows.items()}))
            done += len(batch)
            report("text", done, len(order))
        return torch.cat(outputs).cpu()[torch.tensor(order).argsort()]

    @torch.inference_mode()
    def _outputs(self, rows: dict[str, list[list[int]]]) -> Tensor:
        """The classifier's logits (B, K), fp32, from rows of token ids (and segment ids) of their own lengths."""
        lengths = torch.tensor([len(ids) for ids in rows["input_ids"]])
        inputs = {
            key: nn.utils.rnn.pad_sequence(
                [torch.tensor(row) for row in values],
                batch_first=True,
                padding_value=self.pad_id if key == "input_ids" else 0,
            ).to(self.model.device)
            for key, values in rows.items()
        }
        inputs["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long().to(self.model.device)
        per_token: list[Tensor] = []
        hook = None
        if isinstance(self.per_token_head, nn.Module):
            hook = self.per_token_head.register_forward_hook(lambda _module, _input, output: per_token.append(output))
        try:
            logits = self.model(**inputs).logits
        finally:
            if hook is not None:
                hook.remove()
        if per_token and per_token[0].dim() == 3:
            logits = per_token[0][torch.arange(len(lengths)), lengths.to(self.model.device) - 1]
        return logits.float()

    def _chosen(self, logits_BK: Tensor) -> Tensor:
        if self.output == "logit":
            return logits_BK[:, self.column]
        multi_label = self.model.config.problem_type == "multi_label_classification"
        if self.output == "probability" and (multi_label or logits_BK.shape[1] == 1):
            return logits_BK[:, self.column].sigmoid()
        return logits_BK.softmax(-1)[:, self.column]


def label_column(config: PreTrainedConfig, label: str | None) -> int:
    """The output that `label` names (ignoring case if that is unambiguous). Raises ModelError."""
    labels = {int(i): str(name) for i, name in (config.id2label or {}).items()}
    listed = ", ".join(labels[i] for i in sorted(labels))
    if label is None:
        if len(labels) > 1:
            raise ModelError(f"the reward model has {len(labels)} outputs: set reward.label to one of {listed}")
        return 0
    exact = [i for i, name in labels.items() if name == label]
    matches = exact or [i for i, name in labels.items() if name.lower() == label.lower()]
    if len(matches) != 1:
        raise ModelError(f"the reward model has no label {label!r}: set reward.label to one of {listed}")
    return matches[0]


def encode_answers(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    max_length: int,
    *,
    append_eos: bool = False,
    ended: Sequence[bool] | None = None,
) -> dict[str, list[list[int]]]:
    """As `encode`, of each prompt with its answer. Conversations are rendered in the tokenizer's chat template, where
    it has one; the template then says how an answer ends, and with `append_eos` only those that `ended` have an end."""
    if tokenizer.chat_template is None or not all(isinstance(prompt, Conversation) for prompt in prompts):
        texts = [in_full(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        return encode(tokenizer, texts, max_length, append_eos=append_eos, ended=ended)
    conversations = [prompt for prompt in prompts if isinstance(prompt, Conversation)]
    found = answer_ids(tokenizer, conversations, answers, ended if append_eos else None)
    start = [tokenizer.bos_token_id]
    rows = []
    for ids in found:
        kept = start if ids[:1] == start and len(ids) > max_length else []
        rows.append([*kept, *ids[len(ids) - max_length + len(kept) :]] if len(ids) > max_length else ids)
    return {"input_ids": rows}


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    max_length: int,
    *,
    pairs: list[str] | None = None,
    append_eos: bool = False,
    ended: Sequence[bool] | None = None,
) -> dict[str, list[list[int]]]:
    """Token ids (and segment ids, where the tokenizer makes them), one row per text, cut from the left to `max_length`.

    Special tokens are kept when a text is cut. With `append_eos` every row ends with the tokenizer's EOS, which is not
    added twice, or only those that `ended`; a tokenizer that ends every text itself does so with these too. A row is
    never empty (it is then the EOS, BOS or token 0 alone).
    """
    eos = tokenizer.eos_token_id
    if append_eos and eos is None:
        raise ModelError("the reward model's tokenizer has no EOS token: set one and save_pretrained() it again")
    append_eos = append_eos and tokenizer("a").input_ids[-1:] != [eos]
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    try:
        encoded = tokenizer(
            texts,
            pairs,
            truncation="longest_first",
            max_length=max_length - append_eos,
            return_attention_mask=False,
        )
    finally:
        tokenizer.truncation_side = side
    rows = {key: [list(row) for row in values] for key, values in encoded.items()}
    alone = next(i for i in (eos, tokenizer.bos_token_id, 0) if i is not None)
    for key, values in rows.items():
        for i, row in enumerate(values):
            if (append_eos and (ended is None or ended[i])) or not row:
                row.append(alone if key == "input_ids" else row[-1] if row else 0)
    return rows
