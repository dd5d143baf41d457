"""Decoding token by token with a cache that rows can leave: the state of a batch between two sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rlhf_lib.models.logprobs import start_id
from rlhf_lib.models.trunk import trunk_and_head


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
