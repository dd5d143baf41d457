"""Which of two words a model would say next, before and after: the interpretability exercise of the walk-throughs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.errors import RecipeError
from rlhf_lib.recipe import TokenProbeConfig


@dataclass(frozen=True)
class ProbeResult:
    """logit(token) - logit(against) after the prompt, of both models: a log-odds ratio in nats."""

    prompt: str
    token: str
    against: str
    reference: float
    policy: float


def probe_tokens(probes: Sequence[TokenProbeConfig], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """The ids of each probe's two words: of a word that the tokenizer splits, its first token.

    Raises RecipeError where a word has no token, or both begin with the same one.
    """
    ids: list[tuple[int, int]] = []
    for i, probe in enumerate(probes):
        words = [tokenizer(word, add_special_tokens=False).input_ids for word in (probe.token, probe.against)]
        if not all(words) or words[0][0] == words[1][0]:
            raise RecipeError(
                f"evaluation.probes.{i}: {probe.token!r} and {probe.against!r} must begin with different tokens, and "
                f"begin with {words[0][:1]} and {words[1][:1]} in this tokenizer: choose other words"
            )
        ids.append((words[0][0], words[1][0]))
    return ids


@torch.no_grad()
def next_token_differences(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probes: Sequence[TokenProbeConfig]
) -> list[float]:
    """logit(token) - logit(against) of the token after each prompt (a seq2seq decoder's first), in nats."""
    differences = []
    for probe, (token, against) in zip(probes, probe_tokens(probes, tokenizer), strict=True):
        inputs = {"input_ids": torch.tensor([tokenizer(probe.prompt).input_ids], device=model.device)}
        if model.config.is_encoder_decoder:
            start = model.config.decoder_start_token_id
            inputs["decoder_input_ids"] = torch.tensor([[start]], device=model.device)
        logits_V = model(**inputs).logits[0, -1].float()
        differences.append(float(logits_V[token] - logits_V[against]))
    return differences
