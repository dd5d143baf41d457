"""The mean log-probability of a text under a frozen language model: a reward for sounding like its training text."""

from __future__ import annotations

import math

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.evaluation.perplexity import Perplexity


class LikelihoodReward:
    """Nats per token of query + response under `model`, at most 0; a text without tokens scores as a uniform guess."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, batch_size: int
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.options = {"max_length": max_length, "batch_size": batch_size}
        self.worst = -math.log(model.config.get_text_config().vocab_size)

    def __call__(self, queries: list[str], responses: list[str]) -> list[float]:
        """One score per (query, response)."""
        texts = [query + response for query, response in zip(queries, responses, strict=True)]
        if not texts:
            return []
        measured = Perplexity().compute(predictions=texts, model=self.model, tokenizer=self.tokenizer, **self.options)
        return [self.worst if p is None else -math.log(p) for p in measured["perplexities"]]
