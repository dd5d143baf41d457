"""The log-probs' own backward pass against autograd's, in chunks, blocks, and below fp32."""

import math

import pytest
import torch
from torch import nn

from rlhf_lib.models import logprobs
from rlhf_lib.models.logprobs import token_logprobs

N, D, V = 10, 16, 61


class Run:
    """Values and gradients of a weighted sum of log-probs under a head with these weights."""

    def __init__(self, wrap=lambda head: head, *, bias=False, dtype=None, temperature=0.7, frozen=False) -> None:
        generator = torch.Generator().manual_seed(0)
        head = nn.Linear(D, V, bias=bias)
        for parameter in head.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        head.requires_grad_(not frozen)
        targets = torch.randint(V, (N,), generator=generator)
        states = torch.randn(N, D, generator=generator).requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            self.logprobs, self.entropy = token_logprobs(states, targets, wrap(head), temperature)
        (self.logprobs * torch.arange(N)).sum().backward()
        self.gradients = [states.grad, *(p.grad for p in head.parameters() if p.requires_grad)]

    def agrees(self, other: "Run", rtol: float = 1e-5, atol: float = 1e-5) -> None:
        assert len(self.gradients) == len(other.gradients)
        theirs = [other.logprobs, other.entropy, *other.gradients]
        for ours, expected in zip([self.logprobs, self.entropy, *self.gradients], theirs, strict=True):
            torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)


def by_autograd(head: nn.Linear):
    return lambda states: head(states)


def test_by_hand():
    """A head of zeros is uniform: log-prob -ln V, entropy ln V; a logit of ln 3 among them takes 3 of V + 2 parts."""
    head = nn.Linear(2, 4, bias=False)
    nn.init.zeros_(head.weight)
    head.requires_grad_(False)
    flat, entropy = token_logprobs(torch.ones(1, 2), torch.tensor([1]), head, 1.0)
    assert float(flat) == pytest.approx(-math.log(4))
    assert float(entropy) == pytest.approx(math.log(4))
    head.weight.data[1, 0] = math.log(3)
    raised, _ = token_logprobs(torch.ones(1, 2), torch.tensor([1]), head, 1.0)
    assert float(raised) == pytest.approx(math.log(3 / 6))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_backward_pass_is_autograds(bias, frozen, temperature):
    options = {"bias": bias, "frozen": frozen, "temperature": temperature}
    Run(**options).agrees(Run(by_autograd, **options))


@pytest.mark.parametrize("wrap", [lambda head: head, by_autograd])
def test_chunks_change_neither_values_nor_gradients(monkeypatch, wrap):
    whole = Run(wrap)
    monkeypatch.setattr(logprobs, "LOGITS_ALIVE", 3 * 2**16)
    Run(wrap).agrees(whole)
    monkeypatch.setattr(logprobs, "LOGITS_ALIVE", 3 * V)
    Run(wrap).agrees(whole)


def test_blocks_in_the_cache_change_neither(monkeypatch):
    whole = Run()
    monkeypatch.setattr(logprobs, "CACHED", 4 * V)
    Run().agrees(whole)


def test_in_bf16_it_is_as_near_to_fp32_as_autograd_is():
    exact, ours, theirs = Run(), Run(dtype=torch.bfloat16), Run(by_autograd, dtype=torch.bfloat16)
    assert ours.logprobs.dtype == ours.entropy.dtype == ours.gradients[1].dtype == torch.float32
    for i, gradient in enumerate(exact.gradients):
        errors = [float((run.gradients[i] - gradient).norm() / gradient.norm()) for run in (ours, theirs)]
        assert errors[0] < max(1.5 * errors[1], 0.01)
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=0, atol=1e-6)


def test_without_gradients_the_values_are_the_same_bits():
    """The ratio before the first update is 1 exactly."""
    torch.manual_seed(0)
    head, states, targets = nn.Linear(D, V), torch.randn(N, D), torch.randint(V, (N,))
    with torch.no_grad():
        scored, _ = token_logprobs(states, targets, head, 0.7, with_entropy=False)
    learning, _ = token_logprobs(states.requires_grad_(), targets, head, 0.7)
    assert torch.equal(scored, learning)
