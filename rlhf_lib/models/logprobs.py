"""Log-probabilities of given tokens under a language-model head, without more full-vocabulary passes than needed.

At these sizes the head and its softmax are a third of an update's work, and plain autograd walks the (tokens x
vocabulary) array a dozen times through memory. Here the softmax replaces the logits block by block while a block is in
the cache, is kept as it is for the backward pass, and becomes the logits' gradient in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGITS_ALIVE = 2**27  # full-vocabulary logits alive at a time, tokens x vocabulary: 512 MB in fp32
CACHED = 2**21  # logits whose softmax is taken at a time on a CPU: 8 MB


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
    stand in its place. A head that is no plain linear layer (an adapter on it, scaled states) takes autograd's path.
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
