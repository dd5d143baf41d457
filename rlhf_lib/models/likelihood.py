"""How likely texts are under a language model: the losses behind perplexity and the likelihood reward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.conversation import Conversation
from rlhf_lib.errors import DataError, ModelError
from rlhf_lib.models.chat import split_ids
from rlhf_lib.progress import report

LOGITS_AT_ONCE = 2**25  # floats: bounds a batch's tokens by the vocabulary, 128 MB of logits in fp32


@dataclass(frozen=True)
class Encoded:
    """N texts as token ids: the given context, never empty if there is a target, and the target to be scored."""

    contexts: list[list[int]]
    targets: list[list[int]]
    truncated: int


def encode(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    *,
    start: list[int],
    prompts: Sequence[str] | None = None,
    seq2seq: bool = False,
) -> Encoded:
    """Tokenize and cut to `limit` tokens, context included, from the left; with a prompt, the prompt gives way first.

    Without prompt and start token, a text's first token is its context and not scored. An encoder has its own limit.
    """
    conversations = [prompt for prompt in prompts or [] if isinstance(prompt, Conversation)]
    if conversations and tokenizer.chat_template is not None:
        given, ids = split_ids(tokenizer, conversations, texts)
        return _cut(given, ids, limit)
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    if prompts is None:
        room = limit - len(start)
        kept = [text[-room:] for text in ids]
        contexts = [start or text[:1] for text in kept]
        targets = kept if start else [text[1:] for text in kept]
        return Encoded(contexts, targets, sum(len(text) > room for text in ids))
    given = tokenizer(list(prompts), add_special_tokens=seq2seq, verbose=False)["input_ids"]
    return _cut(given, ids, limit, seq2seq=seq2seq)


def _cut(given: list[list[int]], ids: list[list[int]], limit: int, *, seq2seq: bool = False) -> Encoded:
    targets = [text[-limit if seq2seq else 1 - limit :] for text in ids]
    rooms = [limit if seq2seq else limit - len(target) for target in targets]
    contexts = [prompt[-room:] for prompt, room in zip(given, rooms, strict=True)]
    if any(not context for context in contexts):
        raise DataError(f"perplexity: prompt {contexts.index([])} is empty, so its text's first token can't be scored")
    before = zip(given, ids, strict=True)
    after = zip(contexts, targets, strict=True)
    return Encoded(contexts, targets, sum(was != now for was, now in zip(before, after, strict=True)))


@torch.no_grad()
def target_losses(
    model: PreTrainedModel, contexts: Sequence[list[int]], targets: Sequence[list[int]], *, batch_size: int = 16
) -> list[float]:
    """Negative log-likelihood (nats, summed over tokens) of each target given its context: N floats, 0 for no target.

    Batches are of like length and padded on the right, where causal attention can't see. They go through the model's
    own forward pass, since some architectures cap or scale what comes out of their head.
    """
    losses = [0.0] * len(targets)
    lengths = [len(c) + len(t) for c, t in zip(contexts, targets, strict=True)]
    vocabulary = model.get_output_embeddings().weight.shape[0]
    order = sorted((i for i, target in enumerate(targets) if target), key=lambda i: -lengths[i])
    done = 0
    for rows in _batches(order, lengths, batch_size, LOGITS_AT_ONCE // vocabulary):
        if model.config.is_encoder_decoder:
            labels, _ = _pad([targets[i] for i in rows], model.device)
            shifted = model.prepare_decoder_input_ids_from_labels(labels=labels)  # type: ignore[operator]
            ids, mask = _pad([contexts[i] for i in rows], model.device)
            logits_BTV = model(input_ids=ids, attention_mask=mask, decoder_input_ids=shifted, use_cache=False).logits
            firsts = [0] * len(rows)
        else:
            ids, mask = _pad([contexts[i] + targets[i] for i in rows], model.device)
            logits_BTV = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            firsts = [len(contexts[i]) - 1 for i in rows]
        batch = []
        for i, logits_TV, first in zip(rows, logits_BTV, firsts, strict=True):  # row by row: no second B x T x V
            target_T = torch.tensor(targets[i], device=logits_TV.device)
            predicting_TV = logits_TV[first : first + len(target_T)].float()
            batch.append(F.cross_entropy(predicting_TV, target_T, reduction="none").double().sum())
        for i, loss in zip(rows, torch.stack(batch).tolist(), strict=True):
            losses[i] = loss
        done += len(rows)
        report("text", done, len(order))
    return losses


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token in front of a text that lets its first token be scored: BOS, or else EOS. Raises ModelError if there is
    neither."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ModelError("the tokenizer has neither BOS nor EOS: set evaluation.perplexity.add_start_token to false")


def _batches(order: Sequence[int], lengths: Sequence[int], rows: int, tokens: int) -> Iterator[list[int]]:
    """Runs of `order` (longest first) of at most `rows` rows and, padded, `tokens` tokens; one row at least."""
    start = 0
    while start < len(order):
        size = max(1, min(rows, tokens // lengths[order[start]]))
        yield list(order[start : start + size])
        start += size


def _pad(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and their mask, both (B, T). The pad id is 0: any id does, for it is masked."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return ids.to(device), mask.to(device)
