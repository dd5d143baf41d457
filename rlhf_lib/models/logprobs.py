"""Log-probabilities, values and entropies of given responses, without paying for padding or for unused logits.

For a causal model, query and response are laid end to end in rows shared by several sequences (block-diagonal
attention, positions that start at 0 in each), the last token left out since its state predicts nothing. A seq2seq model
reads the query in its encoder and the response, shifted by its start token, in its decoder. The language-model head
runs on the states that predict response tokens alone.

At these sizes the head and its softmax are a third of an update's work, and plain autograd walks the (tokens x
vocabulary) array a dozen times through memory. Here the softmax replaces the logits block by block while a block is in
the cache, is kept as it is for the backward pass, and becomes the logits' gradient in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf_lib.errors import ModelError
from rlhf_lib.models.loading import positions
from rlhf_lib.models.trunk import given_bottom, run_bottom, trunk_and_head

ROW_TOKENS = 64  # rows shorter than this waste matrix-multiply width; longer ones waste attention
LOGITS_ALIVE = 2**27  # full-vocabulary logits alive at a time, tokens x vocabulary: 512 MB in fp32
CACHED = 2**21  # logits whose softmax is taken at a time on a CPU: 8 MB


@dataclass(frozen=True)
class Packed:
    """Sequences for a causal model, packed in R rows of L tokens; N response tokens in the sequences' order."""

    input_ids_RL: Tensor
    position_ids_RL: Tensor
    attention_R1LL: Tensor | None  # None: one sequence a row, where the causal mask alone is right
    tokens_M: Tensor  # flat index (row * L + column) of every token, in the sequences' order
    predicting_N: Tensor  # that of the state that predicts each response token
    targets_N: Tensor

    def states(self, model: PreTrainedModel, bottom: Tensor | None = None, top: int | None = None) -> Tensor:
        """Last hidden states that predict the response tokens: (N, D). `bottom` are what `run_bottom` gave for every
        token, (M, D): then the `top` blocks alone run, on them."""
        trunk, _ = trunk_and_head(model)
        with nullcontext() if bottom is None or top is None else given_bottom(trunk, top, self._lay(bottom)):
            hidden = trunk(**self._inputs()).last_hidden_state
        return hidden.flatten(0, 1)[self.predicting_N]

    def run_bottom(self, model: PreTrainedModel, top: int) -> Tensor:
        """Hidden states that enter the model's `top` blocks, of every token in the sequences' order: (M, D)."""
        trunk, _ = trunk_and_head(model)
        return run_bottom(trunk, top, **self._inputs()).flatten(0, 1)[self.tokens_M]

    def _inputs(self) -> dict[str, Any]:
        return {
            "input_ids": self.input_ids_RL,
            "position_ids": self.position_ids_RL,
            "attention_mask": self.attention_R1LL,
            "use_cache": False,
        }

    def _lay(self, states_MD: Tensor) -> Tensor:
        laid = states_MD.new_zeros(self.input_ids_RL.numel(), states_MD.shape[1])
        return laid.index_copy_(0, self.tokens_M, states_MD).view(*self.input_ids_RL.shape, -1)


@dataclass(frozen=True)
class Padded:
    """B sequences for a seq2seq model, right-padded: queries to S tokens, responses to T; N response tokens."""

    query_ids_BS: Tensor
    query_mask_BS: Tensor
    decoder_ids_BT: Tensor
    predicting_N: Tensor  # flat index (row * T + column) of the state that predicts each response token
    targets_N: Tensor

    def states(self, model: PreTrainedModel, bottom: Tensor | None = None, top: int | None = None) -> Tensor:
        """The decoder's last hidden states that predict the response tokens: (N, D)."""
        encoder, (decoder, _) = model.get_encoder(), trunk_and_head(model)
        hidden = decoder(
            input_ids=self.decoder_ids_BT,
            encoder_hidden_states=encoder(self.query_ids_BS, attention_mask=self.query_mask_BS).last_hidden_state,
            encoder_attention_mask=self.query_mask_BS,
            use_cache=False,
        ).last_hidden_state
        return hidden.flatten(0, 1)[self.predicting_N]


def arrange(
    model: PreTrainedModel, queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Packed | Padded:
    """The batch in the form that the model's architecture reads, on its device."""
    if model.config.is_encoder_decoder:
        batch: Packed | Padded = pad(queries, responses, start_id=start_id(model))
    else:
        batch = pack(queries, responses)
    device = next(model.parameters()).device
    moved: dict[str, Any] = {name: None if t is None else t.to(device) for name, t in vars(batch).items()}
    return replace(batch, **moved)


def start_id(model: PreTrainedModel) -> int:
    """The token that a seq2seq model's decoder starts from."""
    config = model.config
    start = getattr(config, "decoder_start_token_id", None)
    return config.pad_token_id if start is None else start


def pack(queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Packed:
    """Bin-pack (first fit, longest first) each query and response, without the last token, into rows."""
    lengths = [len(q) + len(r) - 1 for q, r in zip(queries, responses, strict=True)]
    capacity = max(max(lengths), ROW_TOKENS if len(lengths) > 1 else 1)
    room: list[int] = []
    place: dict[int, tuple[int, int]] = {}
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if left >= lengths[i]), len(room))
        if row == len(room):
            room.append(capacity)
        place[i] = (row, capacity - room[row])
        room[row] -= lengths[i]
    width = capacity - min(room)
    ids = torch.zeros(len(room), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    owner = torch.full_like(ids, -1)
    tokens, predicting, targets = [], [], []
    for i, length in enumerate(lengths):
        row, column = place[i]
        sequence = [*queries[i], *responses[i]]
        ids[row, column : column + length] = torch.tensor(sequence[:-1])
        positions[row, column : column + length] = torch.arange(length)
        owner[row, column : column + length] = i
        start = row * width + column
        tokens.append(torch.arange(start, start + length))
        first = start + len(queries[i]) - 1
        predicting.append(torch.arange(first, first + len(responses[i])))
        targets.append(torch.tensor(responses[i]))
    mask = None
    if len(room) < len(lengths):
        same = owner[:, :, None] == owner[:, None, :]
        mask = (same & torch.ones(width, width, dtype=torch.bool).tril())[:, None]
    return Packed(ids, positions, mask, torch.cat(tokens), torch.cat(predicting), torch.cat(targets))


def pad(queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, start_id: int) -> Padded:
    """Right-pad both; the decoder reads the response shifted by `start_id`, so its first token counts."""

    def padded(rows: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    query_ids = padded([torch.tensor(list(q)) for q in queries])
    lengths = torch.tensor([len(q) for q in queries])
    query_mask = (torch.arange(query_ids.shape[1]) < lengths[:, None]).long()
    decoder_ids = padded([torch.tensor([start_id, *r[:-1]]) for r in responses])
    width = decoder_ids.shape[1]
    predicting = torch.cat([torch.arange(i * width, i * width + len(r)) for i, r in enumerate(responses)])
    return Padded(query_ids, query_mask, decoder_ids, predicting, torch.tensor([t for r in responses for t in r]))


def micro_batches(lengths: Sequence[int], tokens: int) -> Iterator[slice]:
    """Consecutive runs of sequences of at most `tokens` tokens together (one sequence at least)."""
    start, total = 0, 0
    for i, length in enumerate(lengths):
        if i > start and total + length > tokens:
            yield slice(start, i)
            start, total = i, 0
        total += length
    yield slice(start, len(lengths))


@torch.no_grad()
def response_logprobs(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    micro_batch_tokens: int = 16384,
) -> list[Tensor]:
    """Log-probability of every response token under a language model: (T_i,) per response, on the CPU."""
    _, head = trunk_and_head(model)
    lengths = [len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True)]
    flat = []
    for rows in micro_batches(lengths, micro_batch_tokens):
        batch = arrange(model, prompt_ids[rows], response_ids[rows])
        flat.append(
            token_logprobs(batch.states(model), batch.targets_N, head, temperature, with_entropy=False)[0].cpu()
        )
    return list(torch.cat(flat).split([len(r) for r in response_ids]))


@torch.no_grad()
def check_head(model: PreTrainedModel, ids: Sequence[int]) -> Packed | Padded:
    """The head on the trunk's states must be the model's own logits: some architectures scale or cap them after it.

    Tried on the first of the token ids given, as query and response, which come back arranged. Raises ModelError.
    """
    ids = ids[: max(1, min(8, positions(model.config) // 2))]  # twice a long prompt may be more than it takes
    batch = arrange(model, [ids], [ids])
    _, head = trunk_and_head(model)
    if isinstance(batch, Padded):
        theirs = model(input_ids=batch.query_ids_BS, decoder_input_ids=batch.decoder_ids_BT).logits[0]
    else:
        theirs = model(input_ids=batch.input_ids_RL).logits[0, -len(ids) :]
    if not torch.allclose(head(batch.states(model)), theirs, atol=1e-3):
        raise ModelError(f"{type(model).__name__} changes its logits after the head, which PPO here doesn't reproduce")
    return batch


# ------------------------------------------------------------ the head


def token_logprobs(
    states_ND: Tensor,
    targets_N: Tensor,
    head: Callable[[Tensor], Tensor],
    temperature: float,
    *,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """log softmax(head(states) / temperature) at the targets, and the entropy (nats, no gradient): both (N,), fp32.

    Chunks of LOGITS_ALIVE are recomputed in the backward pass where there are several. Without `with_entropy` zeros
    take its place. A head that is not a plain linear layer (an adapter on it, scaled states) takes autograd's path.
    """
    plain = type(head) is nn.Linear
    chunk: Callable[..., tuple[Tensor, Tensor]] = _linear_chunk if plain else _any_chunk
    width = getattr(head, "out_features", 2**16)
    rows = max(1, LOGITS_ALIVE // width)
    parts = list(zip(states_ND.split(rows), targets_N.split(rows), strict=True))
    if len(parts) == 1 or not torch.is_grad_enabled():
        results = [chunk(*part, head, temperature, with_entropy) for part in parts]
    else:
        results = [checkpoint(chunk, *part, head, temperature, with_entropy, use_reentrant=False) for part in parts]
    logprobs, entropies = zip(*results, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _any_chunk(
    states: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    logits = head(states).float() / temperature
    normalizer = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None])[:, 0] - normalizer
    if not with_entropy:
        return logprobs, torch.zeros_like(logprobs)
    with torch.no_grad():
        probabilities = (logits - normalizer[:, None]).exp_()
        entropy = normalizer - torch.einsum("nv,nv->n", probabilities, logits)
    return logprobs, entropy


def _linear_chunk(
    states: Tensor, targets: Tensor, head: nn.Linear, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    weight, bias = head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)
    with torch.autocast(device, enabled=False):
        return _LinearLogprobs.apply(states.to(dtype), weight, bias, targets, temperature, with_entropy)


class _LinearLogprobs(torch.autograd.Function):
    """d logprob / d logits = (onehot(target) - softmax) / temperature."""

    @staticmethod
    def forward(
        ctx: Any,
        states_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        needed = any(ctx.needs_input_grad[:3])
        logits_NV = nn.functional.linear(states_ND, weight_VD, bias_V)
        logprobs_N = logits_NV.new_empty(len(targets_N), dtype=torch.float32)
        entropy_N = torch.zeros_like(logprobs_N)
        rows = max(1, CACHED // len(weight_VD)) if logits_NV.device.type == "cpu" else len(targets_N)
        for at in range(0, len(targets_N), rows):
            block = slice(at, at + rows)
            logits = logits_NV[block].float()
            if temperature != 1.0:
                logits = logits / temperature
            normalizer = logits.logsumexp(-1)
            logprobs_N[block] = logits.gather(-1, targets_N[block, None])[:, 0] - normalizer
            if with_entropy or needed:
                softmax = (logits - normalizer[:, None]).exp_()
                if with_entropy:
                    entropy_N[block] = normalizer - torch.linalg.vecdot(softmax, logits)
                if needed:
                    logits_NV[block] = softmax
        if needed:
            ctx.save_for_backward(states_ND, weight_VD, targets_N)
            ctx.softmax_NV, ctx.temperature, ctx.has_bias = logits_NV, temperature, bias_V is not None
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states_ND, weight_VD, targets_N = ctx.saved_tensors
        gradient_NV, ctx.softmax_NV = ctx.softmax_NV, None
        scale_N1 = (gradients[0] / ctx.temperature)[:, None].to(gradient_NV.dtype)
        gradient_NV.mul_(-scale_N1).scatter_add_(1, targets_N[:, None], scale_N1)
        states, weight, bias = ctx.needs_input_grad[:3]
        return (
            gradient_NV @ weight_VD if states else None,
            gradient_NV.T @ states_ND if weight else None,
            gradient_NV.sum(0) if bias else None,
            None,
            None,
            None,
        )
