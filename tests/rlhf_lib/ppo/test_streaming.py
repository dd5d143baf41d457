"""A response as it is being sampled: the same tokens and text as sampled whole, and never more than is sure."""

from __future__ import annotations

import pytest
import torch
from chat_models import chat_model, chat_tokenizer
from tiny_models import EOS, one_thread, tiny_gpt2, tiny_t5, word_tokenizer  # noqa: F401

from rlhf_lib.ppo.rollout import Responses, sample_responses
from rlhf_lib.ppo.streaming import stream_response
from rlhf_lib.recipe import GenerationConfig, LengthSamplerConfig

PROMPT = [5, 9, 2]


def streamed(model, tokenizer, generation, prompt=PROMPT, **options) -> tuple[list[str], Responses]:
    *texts, last = stream_response(model, tokenizer, prompt, generation, **{"seed": 7, "step": 3} | options)
    return texts, last


@pytest.mark.parametrize(
    "generation",
    [
        GenerationConfig(max_new_tokens=12, ignore_eos=True),
        GenerationConfig(max_new_tokens=12, ignore_eos=True, temperature=0.7, top_k=5, top_p=0.9),
        GenerationConfig(ignore_eos=True, length_sampler=LengthSamplerConfig(min=3, max=9)),
    ],
)
@pytest.mark.parametrize("build", [tiny_gpt2, tiny_t5])
@pytest.mark.parametrize("greedy", [False, True])
def test_the_stream_ends_with_what_is_sampled_whole(build, generation, greedy):
    model, tokenizer = build().eval(), word_tokenizer()
    texts, last = streamed(model, tokenizer, generation, greedy=greedy)
    whole = sample_responses(model, tokenizer, [PROMPT], generation, seed=7, step=3, greedy=greedy)
    assert (last.response_ids, last.texts, last.ended) == (whole.response_ids, whole.texts, whole.ended)
    assert torch.equal(last.logprobs[0], whole.logprobs[0])
    assert len(texts) == len(whole.response_ids[0]) - 1  # the last token's text is the whole one
    for before, after in zip(texts, [*texts[1:], last.texts[0]], strict=True):
        assert after.startswith(before)
    assert len({*texts, last.texts[0]}) > 1


def test_seeds_and_steps_tell_streams_apart():
    model, generation = tiny_gpt2().eval(), GenerationConfig(max_new_tokens=12)
    first = streamed(model, word_tokenizer(), generation)[1].response_ids
    assert streamed(model, word_tokenizer(), generation)[1].response_ids == first
    assert streamed(model, word_tokenizer(), generation, seed=8)[1].response_ids != first
    assert streamed(model, word_tokenizer(), generation, step=4)[1].response_ids != first


def test_a_chat_models_bytes_and_white_space_wait_until_they_are_sure():
    """A byte-level vocabulary: characters in pieces, of which a half is never shown."""
    tokenizer = chat_tokenizer("qwen2_5")
    model, generation = chat_model(tokenizer, seed=3), GenerationConfig(max_new_tokens=40, ignore_eos=True)
    halves = 0
    for seed in range(5):
        texts, last = streamed(model, tokenizer, generation, seed=seed)
        whole = sample_responses(model, tokenizer, [PROMPT], generation, seed=seed, step=3)
        assert last.texts == whole.texts
        ids = last.response_ids[0]
        for n, text in enumerate(texts, 1):
            raw = tokenizer.decode(ids[:n], skip_special_tokens=True)
            halves += raw.endswith("�")
            assert not text.endswith("�")
            assert last.texts[0].startswith(text)
    assert halves > 5  # else nothing was held back


def test_a_stop_text_that_has_begun_is_held_back():
    """A byte-level vocabulary again, and a stop text of the sampled text's own characters."""
    tokenizer = chat_tokenizer("qwen2_5")
    model = chat_model(tokenizer, seed=3)
    tokenizer.chat_template = None
    free = GenerationConfig(max_new_tokens=40, ignore_eos=True)
    texts, _ = streamed(model, tokenizer, free)
    # two characters which different tokens end with: the first alone is the beginning of the stop text
    known = next(texts[n + 1][len(texts[n]) - 1 :][:2] for n in range(4, 30) if len(texts[n + 1]) > len(texts[n]) > 0)
    assert len(known) == 2
    stopping = GenerationConfig(max_new_tokens=40, ignore_eos=True, stop=known)
    until, last = streamed(model, tokenizer, stopping)
    assert last.texts == sample_responses(model, tokenizer, [PROMPT], stopping, seed=7, step=3).texts
    assert last.ended == [True]
    assert known not in last.texts[0]
    assert all(last.texts[0].startswith(text) for text in until)
    assert until == [text.removesuffix(known[0]) for text in texts[: len(until)]]


def test_closing_the_stream_ends_the_sampling():
    model, asked = tiny_gpt2().eval(), []
    model.transformer.register_forward_pre_hook(lambda *_: asked.append(1))
    stream = stream_response(
        model, word_tokenizer(), PROMPT, GenerationConfig(max_new_tokens=12, ignore_eos=True), seed=7
    )
    assert isinstance(next(stream), str)
    assert isinstance(next(stream), str)
    stream.close()
    assert len(asked) == 2
    assert not list(stream)
    assert torch.is_grad_enabled()
