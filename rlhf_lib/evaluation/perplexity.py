"""Perplexity of given texts, as an `evaluate.Metric` that takes a model in memory.

`evaluate.load("perplexity")` fetches its script from the hub. Besides what that one returns (`perplexities` and their
mean, the figure of the published tutorials), this one gives the token-weighted perplexity, which one short odd text
can't move, truncates from the left, so that a dialogue keeps its last answer, and says what it truncated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.data.prompts import cut
from rlhf_lib.data.sources import load_split
from rlhf_lib.errors import DataError, ModelError
from rlhf_lib.models.loading import positions
from rlhf_lib.recipe import PerplexitySet
from rlhf_lib.recipe import Prompts as PromptSettings

LOGITS_AT_ONCE = 2**25  # floats: bounds a batch's tokens by the vocabulary, 128 MB of logits in fp32


class Perplexity(evaluate.Metric):
    """`Perplexity().compute(predictions=texts, model=model, tokenizer=tokenizer)`.

    Options: `add_start_token` (as in Hugging Face's metric: BOS in front, so that the first token is scored too; EOS
    where there is no BOS), `batch_size` (texts a forward pass, at most), `max_length` (tokens a text, start token
    included; the model's positions if null) and `prompts` (one a text: the text is scored given its prompt, which a
    seq2seq model reads with its encoder).

    Returns `perplexity` (token-weighted), `mean_perplexity`, `perplexities` (one a text, None where a text has no
    token to score), `tokens` (scored), `truncated` and `skipped` (texts), `rule` (what was done to long texts).
    Raises DataError where there is nothing to score.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Perplexity of texts under a causal or seq2seq language model.",
            citation="",
            inputs_description=Perplexity.__doc__,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://huggingface.co/docs/transformers/perplexity"],
        )

    def compute(self, *, predictions: Sequence[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """As `evaluate.Metric.compute`, but an empty list is refused here rather than deep in Arrow."""
        if predictions is not None and not len(predictions):
            raise DataError("perplexity: there are no texts; point evaluation.perplexity to a set that has some")
        return super().compute(predictions=predictions, **kwargs) or {}

    def _compute(
        self,
        predictions: Sequence[str],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str] | None = None,
        batch_size: int = 16,
        add_start_token: bool = True,
        max_length: int | None = None,
    ) -> dict[str, Any]:
        limit = min(max_length or positions(model.config), positions(model.config))
        if limit < 2:
            raise ValueError(f"max_length must be 2 or more, to score one token after another, not {max_length}")
        seq2seq = bool(model.config.is_encoder_decoder)
        start = [start_token(tokenizer)] if add_start_token and prompts is None else []
        encoded = encode(list(predictions), tokenizer, limit, start=start, prompts=prompts, seq2seq=seq2seq)
        losses = target_losses(model, encoded.contexts, encoded.targets, batch_size=batch_size)
        counts = [len(target) for target in encoded.targets]
        if not sum(counts):
            raise DataError(f"perplexity: none of the {len(counts)} texts has a token to score")
        per_text = [_exp(loss / count) if count else None for loss, count in zip(losses, counts, strict=True)]
        scored = [figure for figure in per_text if figure is not None]
        return {
            "perplexity": _exp(sum(losses) / sum(counts)),
            "mean_perplexity": sum(scored) / len(scored),
            "perplexities": per_text,
            "tokens": sum(counts),
            "truncated": encoded.truncated,
            "skipped": len(per_text) - len(scored),
            "rule": f"texts of more than {limit} tokens{', start token included,' if start else ''} lose their start",
        }


@dataclass(frozen=True)
class Encoded:
    """N texts as token ids: what is given, never empty for a target to be scored, and what is scored."""

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
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    if prompts is None:
        room = limit - len(start)
        kept = [text[-room:] for text in ids]
        contexts = [start or text[:1] for text in kept]
        targets = kept if start else [text[1:] for text in kept]
        return Encoded(contexts, targets, sum(len(text) > room for text in ids))
    given = tokenizer(list(prompts), add_special_tokens=seq2seq, verbose=False)["input_ids"]
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
    return losses


def load_texts(
    source: PerplexitySet, default: str | None = None, *, seed: int = 0, prompts: PromptSettings | None = None
) -> tuple[list[str], list[str] | None]:
    """The texts of the recipe's perplexity set, or `source.limit` of them drawn with the seed, in the set's order; and
    the prompt of each, where they are to be scored given one: from the column `source.prompt`, or where `prompts` is
    given (a seq2seq policy) cut off the text as it says. Texts with nothing left to score are left out then.

    `default` is the data set where the source names none. Raises DataError for a missing set or column, or no text.
    """
    # where the set is the prompts' own, theirs is the key to mend
    key = "evaluation.perplexity" if source.dataset is not None else "data.prompts"
    dataset = load_split(source, default=default, key=key)
    for name, column in (("column", source.column), ("prompt", source.prompt)):
        if column is not None and column not in dataset.column_names:
            raise DataError(
                f"evaluation.perplexity.{name}: {source.dataset or default} has no column '{column}', only "
                f"{', '.join(dataset.column_names)}"
            )
    if source.limit and source.limit < len(dataset):
        drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[: source.limit]
        dataset = dataset.select(sorted(drawn.tolist()))
    if not len(dataset):
        raise DataError(f"evaluation.perplexity: {source.dataset or default}, split {source.split}, has no rows")
    texts = list(dataset[source.column])
    if source.prompt is not None:
        pairs = list(zip(dataset[source.prompt], texts, strict=True))
    elif prompts is None:
        return texts, None
    else:
        pairs = [cut(text, prompts.query, seed, "set evaluation.perplexity.prompt") for text in texts]
    template = (prompts.template if prompts else None) or "{query}"
    pairs = [(template.replace("{query}", prompt), text) for prompt, text in pairs if prompt and text]
    if not pairs:
        raise DataError(
            f"evaluation.perplexity: {source.dataset or default} has no text with something after its prompt"
        )
    return [text for _, text in pairs], [prompt for prompt, _ in pairs]


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What goes before a text so that its first token is scored too: BOS, or EOS. Raises ModelError for neither."""
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


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
