"""Sampling: what is drawn doesn't depend on company, and what is kept with it is right."""

from __future__ import annotations

import pytest
import torch
from tiny_models import (
    EOS,
    VOCABULARY,
    one_thread,  # noqa: F401
    tiny_gpt2,
    tiny_llama,
    tiny_qwen2,
    word_tokenizer,
)

from rlhf_lib.models.critic import ValueHead
from rlhf_lib.models.logprobs import response_logprobs
from rlhf_lib.ppo.rollout import Responses, draws, end_ids, sample_responses
from rlhf_lib.recipe import GenerationConfig, LengthSamplerConfig

PROMPTS = [[5, 9, 2], [EOS], [3, EOS, 8, 1, 4, 7], [11, 12], [6], [EOS, EOS, 5], [20, 21, 22, 23, 24], [30]]
LONG = GenerationConfig(max_new_tokens=12)


@pytest.fixture(params=[tiny_gpt2, tiny_llama, tiny_qwen2], ids=lambda build: build.__name__.removeprefix("tiny_"))
def model(request):
    return request.param()


@pytest.fixture
def eager_to_end():
    """A model that draws EOS with a probability near a quarter at each token, so that rows end at different times."""
    model = tiny_llama(1)
    head = torch.nn.Linear(16, VOCABULARY)
    torch.nn.init.normal_(head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[EOS] = 3.2
    model.lm_head = head
    return model.eval()


def sample(model, prompts=PROMPTS, generation=LONG, **options) -> Responses:
    return sample_responses(model, word_tokenizer(), prompts, generation, **{"seed": 7, "step": 3} | options)


# ---------------------------------------------------------------- draws


def test_length_limits_are_drawn_from_min_to_below_max():
    generation = GenerationConfig(length_sampler=LengthSamplerConfig(min=4, max=7))
    limits, uniforms = draws(generation, (0, 0, 0), range(200))
    assert set(limits) == {4, 5, 6}
    assert uniforms.shape == (200, 6)
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert uniforms.mean() == pytest.approx(0.5, abs=0.03)


def test_each_row_draws_from_a_stream_of_its_own():
    generation = GenerationConfig(length_sampler=LengthSamplerConfig(min=4, max=7))
    limits, uniforms = draws(generation, (5, 2, 0), range(10))
    alone, numbers = draws(generation, (5, 2, 0), [8])
    assert alone == [limits[8]]
    assert (numbers[0] == uniforms[8]).all()
    moved, shifted = draws(generation, (5, 2, 6), [2])  # the third row of a process whose first row is the seventh
    assert moved == [limits[8]]
    assert (shifted[0] == uniforms[8]).all()
    for other in ((6, 2, 0), (5, 3, 0)):
        assert not (draws(generation, other, [8])[1] == numbers).any()
    assert len({row.tobytes() for row in uniforms}) == 10


# ---------------------------------------------------------------- independence


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_changes_no_token(model, batch_size):
    assert sample(model, batch_size=batch_size).response_ids == sample(model).response_ids


def test_a_share_of_the_batch_draws_what_the_whole_draws(model):
    whole = sample(model).response_ids
    assert sample(model, PROMPTS[:3]).response_ids == whole[:3]
    assert sample(model, PROMPTS[3:], first_row=3).response_ids == whole[3:]


def test_rows_that_end_leave_without_a_trace(eager_to_end):
    together = sample(eager_to_end, batch_size=8)
    assert len({len(ids) for ids in together.response_ids}) > 2  # else nothing left early
    assert sample(eager_to_end, batch_size=1).response_ids == together.response_ids


def test_seed_and_step_decide_the_tokens(model):
    first = sample(model).response_ids
    assert sample(model).response_ids == first
    assert sample(model, seed=8).response_ids != first
    assert sample(model, step=4).response_ids != first


def test_equal_prompts_get_responses_of_their_own(model):
    assert len({tuple(ids) for ids in sample(model, [[5, 9]] * 6).response_ids}) == 6


def test_any_pad_token_gives_the_same_tokens(model):
    tokenizer = word_tokenizer()
    drawn = []
    for pad in (None, "<eos>", "w17"):
        tokenizer.pad_token = pad
        drawn.append(sample_responses(model, tokenizer, PROMPTS, LONG, seed=7).response_ids)
    assert drawn[0] == drawn[1] == drawn[2]


# ---------------------------------------------------------------- what is drawn


def test_greedy_is_the_argmax_of_the_sequence_alone(model):
    responses = sample(model, greedy=True).response_ids
    with torch.no_grad():
        for prompt, response in zip(PROMPTS, responses, strict=True):
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            assert response == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_follow_the_distribution_at_the_temperature(model, temperature):
    """Pearson's chi-square of 4000 first tokens; bins with fewer than 5 expected are pooled."""
    drawn = sample(
        model, [[5, 9, 2]] * 4000, GenerationConfig(max_new_tokens=1, temperature=temperature), batch_size=4000
    )
    counts = torch.bincount(torch.tensor(drawn.response_ids)[:, 0], minlength=VOCABULARY).double()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 9, 2]])).logits[0, -1].double()
    expected = 4000 * (logits / temperature).softmax(-1)
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    chi_square, freedom = float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations above its mean


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.3}])
def test_filters_bound_the_tokens_but_keep_the_full_distributions_logprobs(model, filters):
    drawn = sample(model, [[5, 9, 2]] * 300, GenerationConfig(max_new_tokens=1, **filters), batch_size=300)
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([[5, 9, 2]])).logits[0, -1].log_softmax(-1)
    ranked = logprobs.sort(descending=True)
    allowed = 3 if "top_k" in filters else int((ranked.values.exp().cumsum(0) < 0.3).sum()) + 1
    assert {ids[0] for ids in drawn.response_ids} == set(ranked.indices[:allowed].tolist())
    for ids, kept in zip(drawn.response_ids, drawn.logprobs, strict=True):
        assert kept.item() == pytest.approx(logprobs[ids[0]].item(), abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_values_kept_are_those_of_a_fresh_pass(model, temperature):
    value_head = ValueHead(16)
    torch.nn.init.normal_(value_head.summary.weight, generator=torch.Generator().manual_seed(0))
    drawn = sample(
        model, generation=GenerationConfig(max_new_tokens=12, temperature=temperature), value_head=value_head
    )
    fresh = response_logprobs(model, PROMPTS, drawn.response_ids, temperature=temperature)
    for kept, expected in zip(drawn.logprobs, fresh, strict=True):
        torch.testing.assert_close(kept, expected, rtol=0, atol=1e-4)
    with torch.no_grad():
        for prompt, response, values in zip(PROMPTS, drawn.response_ids, drawn.values, strict=True):
            states = model.get_decoder()(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
            torch.testing.assert_close(values, value_head(states[len(prompt) - 1 : -1]), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- endings


def test_an_ending_and_a_cut_are_told_apart(eager_to_end):
    drawn = sample(eager_to_end, PROMPTS * 4)
    assert {True, False} == set(drawn.ended)
    for ids, ended in zip(drawn.response_ids, drawn.ended, strict=True):
        assert EOS not in ids[:-1]
        assert ended == (ids[-1] == EOS)
        assert ended or len(ids) == 12


def test_an_eos_at_the_limit_is_an_ending(eager_to_end):
    drawn = sample(eager_to_end, PROMPTS * 4, GenerationConfig(max_new_tokens=1))
    assert {True, False} == set(drawn.ended)
    assert all(ended == (ids == [EOS]) for ids, ended in zip(drawn.response_ids, drawn.ended, strict=True))


def test_ignore_eos_runs_to_the_limit(eager_to_end):
    drawn = sample(eager_to_end, generation=GenerationConfig(max_new_tokens=12, ignore_eos=True))
    assert {len(ids) for ids in drawn.response_ids} == {12}
    assert not any(drawn.ended)
    assert any(EOS in ids for ids in drawn.response_ids)


def test_the_length_sampler_sets_each_rows_limit(model):
    generation = GenerationConfig(length_sampler=LengthSamplerConfig(min=2, max=6), ignore_eos=True)
    limits, _ = draws(generation, (7, 3, 0), range(8))
    assert [len(ids) for ids in sample(model, generation=generation).response_ids] == limits


def test_a_stop_text_ends_a_response_and_is_left_out_of_its_text(model):
    whole = sample(model, generation=GenerationConfig(max_new_tokens=12, ignore_eos=True))
    stop = f"w{whole.response_ids[0][4]}"  # a word that the first response says
    drawn = sample(model, generation=GenerationConfig(max_new_tokens=12, ignore_eos=True, stop=stop))
    first = drawn.response_ids[0]
    assert drawn.ended[0]
    assert len(first) <= 5
    assert first == whole.response_ids[0][: len(first)]
    assert stop not in drawn.texts[0]
    for ids, ended in zip(drawn.response_ids, drawn.ended, strict=True):
        assert ended == (stop in word_tokenizer().decode(ids))


def test_texts_are_the_tokens_without_special_ones(eager_to_end):
    drawn = sample(eager_to_end)
    for ids, text in zip(drawn.response_ids, drawn.texts, strict=True):
        assert text == " ".join(f"w{i}" for i in ids if i != EOS)


def test_every_eos_of_the_generation_config_ends_a_response(model):
    model.generation_config.eos_token_id = [4, 9]
    assert end_ids(model, word_tokenizer()) == {EOS, 4, 9}


def test_training_mode_is_left_as_it_was_and_unused(model):
    expected = sample(model).response_ids
    model.train()
    assert sample(model).response_ids == expected
    assert model.training
