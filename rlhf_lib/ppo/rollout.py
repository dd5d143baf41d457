"""Sampling responses in batches, with the log-probability (and value) of every token kept as it is drawn.

Row i of step s draws from its own stream, seeded by (seed, s, i): the same tokens whatever the batch it shares and
however many processes there are. Rows that have ended leave the batch together with their cache.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

from rlhf_lib.models.chat import answer_content
from rlhf_lib.models.logprobs import start_id
from rlhf_lib.models.trunk import trunk_and_head
from rlhf_lib.progress import report
from rlhf_lib.recipe import GenerationConfig

logger = logging.getLogger(__name__)
COMPACT_BELOW = 0.8  # share of live rows under which copying the cache costs less than carrying dead rows


@dataclass
class Responses:
    """Sampled responses, in the order of the prompts. `response_ids` end with the EOS where one was drawn."""

    prompt_ids: list[list[int]]
    response_ids: list[list[int]]
    # decoded, without special tokens and without the stop text; a seq2seq model's begin with a space, so that query +
    # response reads as text, and with a chat template they are the content of the assistant's message
    texts: list[str]
    ended: list[bool]  # by EOS or stop text, rather than by the length limit
    logprobs: list[Tensor]  # (T_i,) fp32 each: the full softmax's at the given temperature
    values: list[Tensor]  # (T_i,) fp32 each; empty where no value head was given


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Token ids that end a response: the tokenizer's EOS and those of the model's generation config."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {i for i in (tokenizer.eos_token_id, *listed) if i is not None}


@torch.no_grad()
def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    generation: GenerationConfig,
    *,
    seed: int,
    step: int = 0,
    first_row: int = 0,
    greedy: bool = False,
    batch_size: int = 128,
    value_head: nn.Module | None = None,
) -> Responses:
    """One response per prompt from a language model, causal or seq2seq.

    `first_row` is the global number of the first prompt's row. Prompts of similar length share a batch.
    """
    order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    out = unsampled(prompt_ids)
    was_training = model.training
    model.eval()
    report("response", 0, len(order))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for _ in sample_batch(model, tokenizer, rows, out, generation, (seed, step, first_row), greedy, value_head):
            pass
        report("response", start + len(rows), len(order))
    model.train(was_training)
    for i, ids in enumerate(out.response_ids):
        out.texts[i] = response_text(model, tokenizer, ids, out.ended[i], generation.stop)
    return out


def unsampled(prompt_ids: Sequence[Sequence[int]]) -> Responses:
    """The prompts, with everything else to be filled in."""
    return Responses([list(p) for p in prompt_ids], *([None] * len(prompt_ids) for _ in range(5)))  # type: ignore[arg-type]


def response_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ended: bool, stop: str | None
) -> str:
    """A response's tokens as `Responses.texts` has them."""
    # an end of turn need not be one of the tokenizer's special tokens
    said = ids[:-1] if ended and ids[-1] in end_ids(model, tokenizer) else ids
    text = str(tokenizer.decode(list(said), skip_special_tokens=True))
    if stop:
        text = text.split(stop)[0]
    if model.config.is_encoder_decoder and text and not text[0].isspace():
        text = f" {text}"
    return text if tokenizer.chat_template is None else answer_content(text)


def sample_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[int],
    out: Responses,
    generation: GenerationConfig,
    stream: tuple[int, int, int],
    greedy: bool,
    value_head: nn.Module | None,
) -> Iterator[list[list[int]]]:
    """Sample the `rows` of `out` together, which has what was sampled once this is exhausted; after every token but the
    last, each row's tokens so far, in the order of `rows`."""
    device = next(model.parameters()).device
    _, head = trunk_and_head(model)
    ends = set() if generation.ignore_eos else end_ids(model, tokenizer)
    limits, uniforms = draws(generation, stream, rows)
    steps = max(limits)
    filters = LogitsProcessorList()
    if generation.top_k:
        filters.append(TopKLogitsWarper(generation.top_k))
    if generation.top_p < 1:
        filters.append(TopPLogitsWarper(generation.top_p))

    draws_BT = torch.from_numpy(uniforms).to(device)
    batch = decoding(model, [out.prompt_ids[i] for i in rows], steps)
    live = list(range(len(rows)))  # rows of the batch as it stands -> rows as given
    done = [False] * len(rows)
    tokens: list[list[int]] = [[] for _ in rows]
    logprobs: list[list[Tensor]] = [[] for _ in rows]
    values: list[list[Tensor]] = [[] for _ in rows]
    for t in range(steps):
        states = batch.states()
        logits = head(states).float() / generation.temperature
        ids = _draw(filters(None, logits), draws_BT[:, t], greedy)  # type: ignore[arg-type]
        drawn_logprobs = (logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True))[:, 0].cpu()
        drawn_values = None if value_head is None else value_head(states).float().cpu()
        for b, token in enumerate(ids[:, 0].tolist()):
            row = live[b]
            if done[row]:
                continue
            tokens[row].append(token)
            logprobs[row].append(drawn_logprobs[b])
            if drawn_values is not None:
                values[row].append(drawn_values[b])
            ended = token in ends or (generation.stop is not None and _stops(tokenizer, tokens[row], generation.stop))
            out.ended[rows[row]] = ended
            done[row] = ended or len(tokens[row]) == limits[row]
        keep = [b for b, row in enumerate(live) if not done[row]]
        if not keep:
            break
        yield tokens
        batch.append(ids)
        if len(keep) < COMPACT_BELOW * len(live):
            kept = torch.tensor(keep, device=device)
            batch.keep(kept)
            draws_BT = draws_BT[kept]
            live = [live[b] for b in keep]
    for b, i in enumerate(rows):
        out.response_ids[i] = tokens[b]
        out.logprobs[i] = torch.stack(logprobs[b])
        out.values[i] = torch.stack(values[b]) if values[b] else torch.empty(0)


def draws(
    generation: GenerationConfig, stream: tuple[int, int, int], rows: Sequence[int]
) -> tuple[list[int], np.ndarray]:
    """Each row's length limit, and its uniform numbers in [0, 1): (rows, longest limit), fp32."""
    seed, step, first_row = stream
    sampler = generation.length_sampler
    longest = generation.response_limit
    limits, uniforms = [], np.empty((len(rows), longest), dtype=np.float32)
    for b, row in enumerate(rows):
        generator = np.random.Generator(np.random.Philox(key=[seed, (step << 32) + first_row + row]))
        limits.append(int(generator.integers(sampler.min, sampler.max)) if sampler else longest)
        uniforms[b] = generator.random(longest, dtype=np.float32)
    return limits, uniforms


def _draw(logits_BV: Tensor, uniform_B: Tensor, greedy: bool) -> Tensor:
    """One token a row, (B, 1), by inverting the cumulative distribution at the row's uniform number."""
    if greedy:
        return logits_BV.argmax(-1, keepdim=True)
    cumulative = logits_BV.softmax(-1).cumsum(-1)
    target = uniform_B[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=logits_BV.shape[-1] - 1)


def _stops(tokenizer: PreTrainedTokenizerBase, tokens: list[int], stop: str) -> bool:
    """Whether the text just completed holds the stop text; a stop text of n characters spans at most n + 1 tokens."""
    return stop in tokenizer.decode(tokens[-(len(stop.encode()) + 1) :])


def prompt_order(prompts: int, first: int, count: int, *, seed: int) -> list[int]:
    """Places first to first + count - 1 of an endless sequence of permutations of so many prompts."""
    orders: dict[int, np.ndarray] = {}
    for epoch in range(first // prompts, (first + count - 1) // prompts + 1):
        orders[epoch] = np.random.default_rng([seed, 1, epoch]).permutation(prompts)
    return [int(orders[g // prompts][g % prompts]) for g in range(first, first + count)]


def sampling_agrees(drift_N: Tensor, dtype: torch.dtype) -> bool:
    """Whether log-probs kept from sampling may stand for a scoring pass: `drift` is their difference per token.

    fp32: within 1e-4, and a warning where it is more. bf16: never. Its kernels differ by an rms near 0.01, and since
    the KL must subtract passes of the same kind, the policy's scoring pass is needed anyway and gives the old log-probs
    at no extra cost.
    """
    expected = dtype != torch.float32
    if not expected and bool(drift_N.abs().max() <= 1e-4):
        return True
    logger.log(
        logging.DEBUG if expected else logging.WARNING,
        "log-probs kept from sampling differ from a scoring pass (rms %.2g, mean %.2g, largest %.2g): they are "
        "recomputed from here on",
        float(drift_N.square().mean().sqrt()),
        float(drift_N.mean()),
        float(drift_N.abs().max()),
    )
    return False


def decoding(model: PreTrainedModel, prompts: Sequence[Sequence[int]], steps: int) -> CausalDecoding | Seq2SeqDecoding:
    """The decoding state of the model's architecture over a batch of prompts, for at most `steps` tokens each."""
    return (Seq2SeqDecoding if model.config.is_encoder_decoder else CausalDecoding)(model, prompts, steps)


class ReservedLayer(DynamicLayer):
    """A layer's cache with room for `room` tokens from its first on. The library's own is copied whole for each token
    that it gains, which makes long responses cost the square of their length."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add (B, H, new tokens, D) each, and return all that there is."""
        filled = self.get_seq_length()
        if filled == 0:
            self.lazy_initialization(key_states, value_states)
            rows, heads = key_states.shape[:2]
            self.reserved = [s.new_empty(rows, heads, self.room, s.shape[-1]) for s in (key_states, value_states)]
        end = filled + key_states.shape[-2]
        for reserved, new in zip(self.reserved, (key_states, value_states), strict=True):
            reserved[..., filled:end, :] = new
        self.keys, self.values = (reserved[..., :end, :] for reserved in self.reserved)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        filled = self.get_seq_length()
        if filled:
            self.reserved = [reserved[indices] for reserved in self.reserved]
            self.keys, self.values = (reserved[..., :filled, :] for reserved in self.reserved)


def reserved_cache(model: PreTrainedModel, room: int) -> DynamicCache:
    """The cache of the model's architecture, with room for so many tokens where its layers keep them all."""
    cache = DynamicCache(config=model.config)
    cache.layers = [ReservedLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class CausalDecoding:
    """Prompts left-padded, positions from the mask."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], steps: int) -> None:
        self.trunk, _ = trunk_and_head(model)
        self.width = max(map(len, prompts))
        self.cache = reserved_cache(model, self.width + steps)
        ids = torch.zeros(len(prompts), self.width, dtype=torch.long)
        mask = torch.zeros(len(prompts), self.width + steps, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, self.width - len(prompt) :] = torch.tensor(prompt)
            mask[row, self.width - len(prompt) :] = 1
        device = next(model.parameters()).device
        self.ids, self.mask = ids.to(device), mask.to(device)
        self.positions = (self.mask[:, : self.width].cumsum(-1) - 1).clamp(min=0)

    def states(self) -> Tensor:
        """Last hidden state of the newest token: (B, D)."""
        return self.trunk(
            input_ids=self.ids,
            attention_mask=self.mask[:, : self.width],
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

    def append(self, ids_B1: Tensor) -> None:
        """Go on with these tokens."""
        self.ids, self.positions, self.width = ids_B1, self.positions[:, -1:] + 1, self.width + 1

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows, with their cache."""
        self.cache.batch_select_indices(rows)
        self.ids, self.positions, self.mask = self.ids[rows], self.positions[rows], self.mask[rows]


class Seq2SeqDecoding:
    """Prompts right-padded into the encoder, which runs once; the decoder starts from its start token."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], steps: int) -> None:
        self.decoder, _ = trunk_and_head(model)
        device = next(model.parameters()).device
        query_ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(list(p)) for p in prompts], batch_first=True)
        lengths = torch.tensor([len(p) for p in prompts])
        self.mask = (torch.arange(query_ids.shape[1]) < lengths[:, None]).long().to(device)
        self.encoded = model.get_encoder()(query_ids.to(device), attention_mask=self.mask).last_hidden_state
        # layers as the decoder asks for them: a configuration's number of layers may be the encoder's
        own, cross = DynamicCache(), DynamicCache()
        own.layer_class_to_replicate = partial(ReservedLayer, steps)  # type: ignore[assignment]
        self.cache = EncoderDecoderCache(own, cross)
        self.ids = torch.full((len(prompts), 1), start_id(model), device=device)

    def states(self) -> Tensor:
        """Last hidden state of the newest token: (B, D)."""
        return self.decoder(
            input_ids=self.ids,
            encoder_hidden_states=self.encoded,
            encoder_attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

    def append(self, ids_B1: Tensor) -> None:
        """Go on with these tokens."""
        self.ids = ids_B1

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows, with their cache."""
        self.cache.batch_select_indices(rows)
        self.ids, self.encoded, self.mask = self.ids[rows], self.encoded[rows], self.mask[rows]
