"""One response as it is being sampled, for a person who waits: the loop of rollout.py, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.models.chat import answer_content
from rlhf_lib.ppo.rollout import Responses, response_text, sample_batch, unsampled
from rlhf_lib.recipe import GenerationConfig


@torch.no_grad()
def stream_response(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    generation: GenerationConfig,
    *,
    seed: int,
    step: int = 0,
    greedy: bool = False,
) -> Iterator[str | Responses]:
    """The text so far after every token, and last the Responses, of one row, that `sample_responses` gives for this
    prompt. The model must be in evaluation mode. Closing the iterator ends the sampling.

    A text so far begins the final text, but for two things that only what follows can tell: a character of which some
    bytes are due, and a stop text that has begun, are left out until then. A model whose chat template opens its
    thoughts itself takes them back when they end, as its texts are the answers after them.
    """
    out = unsampled([prompt_ids])
    for tokens in sample_batch(model, tokenizer, [0], out, generation, (seed, step, 0), greedy, None):
        yield _so_far(model, tokenizer, tokens[0], generation.stop)
    out.texts[0] = response_text(model, tokenizer, out.response_ids[0], out.ended[0], generation.stop)
    yield out


def _so_far(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: str | None) -> str:
    text = response_text(model, tokenizer, ids, False, stop).rstrip("\ufffd")
    begun = next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0) if stop else 0
    text = text[: len(text) - begun]
    return text if tokenizer.chat_template is None else answer_content(text)
