"""Perplexity of given texts, as an `evaluate.Metric` that takes a model in memory.

`evaluate.load("perplexity")` fetches its script from the hub. Besides what that one returns (`perplexities` and their
mean, as the published tutorials report), this one gives the token-weighted perplexity, which one short odd text
can't move, truncates from the left, so that a dialogue keeps its last answer, and says what it truncated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.errors import DataError
from rlhf_lib.models.likelihood import encode, start_token, target_losses
from rlhf_lib.models.loading import positions
from rlhf_lib.recipe import PerplexitySetConfig


class Perplexity(evaluate.Metric):
    """`Perplexity().compute(predictions=texts, model=model, tokenizer=tokenizer)`.

    Options: `add_start_token` (as in Hugging Face's metric: BOS in front, so that the first token is scored too; EOS
    where there is no BOS), `batch_size` (texts a forward pass, at most), `max_length` (tokens a text, start token
    included; the model's positions if null) and `prompts` (one a text: the text is scored given its prompt, which a
    seq2seq model reads with its encoder).

    Returns `perplexity` (token-weighted), `mean_perplexity`, `perplexities` (one a text, None where a text has no
    token to score), `tokens` (scored), `truncated` and `skipped` (texts), `rule` (what was done to long texts).
    Raises DataError where there is nothing to score.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Perplexity of texts under a causal or seq2seq language model.",
            citation="",
            inputs_description=Perplexity.__doc__,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://huggingface.co/docs/transformers/perplexity"],
        )

    def compute(self, *, predictions: Sequence[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """As `evaluate.Metric.compute`, but an empty list is refused here rather than deep in Arrow."""
        if predictions is not None and not len(predictions):
            raise DataError("perplexity: there are no texts; point evaluation.perplexity to a set that has some")
        return super().compute(predictions=predictions, **kwargs) or {}

    def _compute(
        self,
        predictions: Sequence[str],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str] | None = None,
        batch_size: int = 16,
        add_start_token: bool = True,
        max_length: int | None = None,
    ) -> dict[str, Any]:
        limit = min(max_length or positions(model.config), positions(model.config))
        if limit < 2:
            raise ValueError(f"max_length must be 2 or more, to score one token after another, not {max_length}")
        seq2seq = bool(model.config.is_encoder_decoder)
        start = [start_token(tokenizer)] if add_start_token and prompts is None else []
        encoded = encode(list(predictions), tokenizer, limit, start=start, prompts=prompts, seq2seq=seq2seq)
        losses = target_losses(model, encoded.contexts, encoded.targets, batch_size=batch_size)
        counts = [len(target) for target in encoded.targets]
        if not sum(counts):
            raise DataError(f"perplexity: none of the {len(counts)} texts has a token to score; name other texts")
        per_text = [_exp(loss / count) if count else None for loss, count in zip(losses, counts, strict=True)]
        scored = [value for value in per_text if value is not None]
        return {
            "perplexity": _exp(sum(losses) / sum(counts)),
            "mean_perplexity": sum(scored) / len(scored),
            "perplexities": per_text,
            "tokens": sum(counts),
            "truncated": encoded.truncated,
            "skipped": len(per_text) - len(scored),
            "rule": f"texts of more than {limit} tokens{', start token included,' if start else ''} lose their start",
        }


def measure_perplexity(
    settings: PerplexitySetConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    prompts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What `Perplexity` returns for the texts (given the prompts, if any), measured as the recipe's section says."""
    return Perplexity(keep_in_memory=True).compute(
        predictions=texts,
        prompts=prompts,
        model=model,
        tokenizer=tokenizer,
        batch_size=settings.batch_size,
        add_start_token=settings.add_start_token,
    )


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
