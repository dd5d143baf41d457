"""A rollout batch: the tokens of its responses, and everything about them that the updates need, computed once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lib.models.logprobs import Packed, Padded, arrange


@dataclass
class Batch:
    """B responses, right-padded to T tokens."""

    queries: list[list[int]]
    responses: list[list[int]]
    mask_BT: Tensor
    logprobs_BT: Tensor  # the behaviour policy's: the ratio's denominator
    values_BT: Tensor
    kl_BT: Tensor  # estimate per token, by ppo.kl_estimator
    ref_logprobs_BT: Tensor
    advantages_BT: Tensor = field(default_factory=lambda: torch.empty(0))
    returns_BT: Tensor = field(default_factory=lambda: torch.empty(0))
    bottom: list[Tensor] | None = None  # (len, D) each: what enters the unfrozen blocks

    @classmethod
    def of(cls, queries: list[list[int]], responses: list[list[int]], device: torch.device) -> Batch:
        """The batch before anything is computed: its mask alone."""
        lengths_B = torch.tensor([len(response) for response in responses], device=device)
        mask_BT = (torch.arange(int(lengths_B.max()), device=device) < lengths_B[:, None]).float()
        nothing = torch.empty(0)
        return cls(queries, responses, mask_BT, nothing, nothing, nothing, nothing)

    def lengths(self, rows: np.ndarray) -> list[int]:
        """Tokens of query and response together, of each of the rows."""
        return [len(self.queries[i]) + len(self.responses[i]) for i in rows]

    def weight(self, rows: np.ndarray, full: int) -> float:
        """What the loss of a mini-batch of these rows counts for beside that of one of `full` rows: 1, or for a smaller
        one its share of the batch's tokens over the share that a full one has on average."""
        full = min(full, len(self.responses))
        if len(rows) >= full:
            return 1.0
        tokens = sum(len(self.responses[i]) for i in rows) / sum(map(len, self.responses))
        return tokens * len(self.responses) / full

    def arrange(self, model: PreTrainedModel, rows: np.ndarray) -> Packed | Padded:
        """These rows, as the model reads them."""
        return arrange(model, [self.queries[i] for i in rows], [self.responses[i] for i in rows])

    def bottom_of(self, rows: np.ndarray) -> Tensor | None:
        """What enters the unfrozen blocks for these rows, (M, D); None where all blocks run."""
        return None if self.bottom is None else torch.cat([self.bottom[i] for i in rows])


def unflatten(flat_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Flat response tokens to (B, T), zeros off the mask."""
    return torch.zeros_like(mask_BT).masked_scatter_(mask_BT.bool(), flat_N)
