"""Log-probabilities of given responses: packed rows, chunked logits and micro-batches against the plain way."""

from __future__ import annotations

import pytest
import torch
from tiny_models import EOS, one_thread, tiny_gpt2, tiny_llama, tiny_qwen2  # noqa: F401

from rlhf_lib.models.logprobs import micro_batches, pack, response_logprobs, token_logprobs

# Different lengths, one token among them; EOS (which fills the packed rows too) first, last and inside.
QUERIES = [[5, 9, 2], [EOS], [3, EOS, 8, 1, 4, 7], [11, 12], [6], [EOS, EOS, 5]]
RESPONSES = [[4, 8], [7, EOS, 3, 2, EOS], [9], [EOS], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [2, EOS]]


@pytest.fixture(params=[tiny_gpt2, tiny_llama, tiny_qwen2], ids=lambda build: build.__name__.removeprefix("tiny_"))
def model(request):
    return request.param()


@torch.no_grad()
def plain(model, query: list[int], response: list[int], temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence alone, no padding, the model's own positions and logits: log-probs and entropies, (T,) each."""
    logits = model(input_ids=torch.tensor([query + response])).logits[0, len(query) - 1 : -1].float()
    logprobs = (logits / temperature).log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(response)[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def close(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_full_softmax_of_each_sequence_alone(model, temperature):
    scored = response_logprobs(model, QUERIES, RESPONSES, temperature=temperature)
    assert [len(s) for s in scored] == [len(r) for r in RESPONSES]
    for query, response, ours in zip(QUERIES, RESPONSES, scored, strict=True):
        close(ours, plain(model, query, response, temperature)[0])


def test_entropy_is_that_of_the_whole_distribution(model):
    packed = pack(QUERIES, RESPONSES)
    _, entropy = token_logprobs(packed.states(model), packed.targets_N, model.get_output_embeddings(), 0.7)
    expected = [plain(model, q, r, 0.7)[1] for q, r in zip(QUERIES, RESPONSES, strict=True)]
    close(entropy, torch.cat(expected))
    assert not entropy.requires_grad


def test_batch_composition_changes_nothing(model):
    together = response_logprobs(model, QUERIES, RESPONSES)
    order = [4, 2, 0, 5, 1, 3]
    shuffled = response_logprobs(model, [QUERIES[i] for i in order], [RESPONSES[i] for i in order])
    for place, i in enumerate(order):
        close(shuffled[place], together[i])
        close(response_logprobs(model, QUERIES[i : i + 1], RESPONSES[i : i + 1])[0], together[i])


@pytest.mark.parametrize("tokens", [1, 9, 20])
def test_micro_batch_size_changes_nothing(model, tokens):
    whole = response_logprobs(model, QUERIES, RESPONSES)
    for ours, expected in zip(
        response_logprobs(model, QUERIES, RESPONSES, micro_batch_tokens=tokens), whole, strict=True
    ):
        close(ours, expected)


def test_micro_batches_hold_at_most_that_many_tokens():
    assert list(micro_batches([3, 4, 2, 9, 1], 7)) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    assert list(micro_batches([3, 4, 2], 100)) == [slice(0, 3)]
    assert list(micro_batches([50], 7)) == [slice(0, 1)]  # one sequence at least


def test_neighbours_in_a_packed_row_are_not_seen(model):
    """Changing one sequence moves no bit of another one's log-probs that share its row."""
    before = response_logprobs(model, QUERIES, RESPONSES)
    changed = [[(token + 1) % 61 for token in QUERIES[0]], *QUERIES[1:]]
    after = response_logprobs(model, changed, RESPONSES)
    assert not torch.equal(before[0], after[0])
    assert all(torch.equal(a, b) for a, b in zip(before[1:], after[1:], strict=True))


def test_pack_keeps_every_token_but_the_last_with_positions_from_zero():
    packed = pack([[5, 6], [7]], [[8, 9], [1, 2, 3]])
    flat, positions = packed.input_ids_RL.flatten(), packed.position_ids_RL.flatten()
    states = packed.predicting_N.tolist()
    assert [flat[i].item() for i in states] == [6, 8, 7, 1, 2]  # the tokens just before the response's
    assert [positions[i].item() for i in states] == [1, 2, 0, 1, 2]
    assert packed.targets_N.tolist() == [8, 9, 1, 2, 3]
    assert packed.input_ids_RL.shape == (1, 6)


def test_packing_wastes_less_than_padding():
    queries, responses = [[1] * 4] * 200, [[2] * (4 + i % 13) for i in range(200)]
    real = sum(len(q) + len(r) - 1 for q, r in zip(queries, responses, strict=True))
    assert real > 0.9 * pack(queries, responses).input_ids_RL.numel()
