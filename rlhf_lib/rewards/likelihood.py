"""The mean log-probability of a text under a frozen language model: a reward for staying close to its training text."""

from __future__ import annotations

import math

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.conversation import in_full
from rlhf_lib.models.likelihood import encode, start_token, target_losses
from rlhf_lib.models.loading import positions


class LikelihoodReward:
    """Nats per token of query + response under `model`, at most 0; a text without tokens scores as a uniform guess.

    A text longer than `max_length` tokens, or the model's positions, loses its beginning.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, batch_size: int
    ) -> None:
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.start = [start_token(tokenizer)]
        self.limit = max(min(max_length or positions(model.config), positions(model.config)), 2)
        self.worst = -math.log(model.config.get_text_config().vocab_size)

    def __call__(self, queries: list[str], responses: list[str]) -> list[float]:
        """One score per (query, response)."""
        texts = [in_full(query, response) for query, response in zip(queries, responses, strict=True)]
        if not texts:
            return []
        encoded = encode(texts, self.tokenizer, self.limit, start=self.start)
        losses = target_losses(self.model, encoded.contexts, encoded.targets, batch_size=self.batch_size)
        counts = [len(target) for target in encoded.targets]
        return [-loss / count if count else self.worst for loss, count in zip(losses, counts, strict=True)]
