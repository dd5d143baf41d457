"""What ends PPO in the middle of a step, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlhf_lib.errors import RLHFError

if TYPE_CHECKING:
    from rlhf_lib.ppo.batch import Batch

# torch has an exception of its own for accelerators alone; its CPU allocator says one of these, by platform
_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "not enough memory")


class Diverged(RLHFError):
    """The loss or its gradient is NaN or infinite. `rows` holds the mini-batch; the policy is as before its update."""

    def __init__(self, message: str, rows: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.rows = rows


def diverged(step: int, loss: float, norm: float, batch: Batch, rows: np.ndarray) -> Diverged:
    """The error that names and holds these rows of the batch."""
    return Diverged(
        f"PPO diverged at step {step}: loss {loss}, gradient norm {norm}, in rows {rows.tolist()} of the batch. "
        "Lower ppo.learning_rate, or set ppo.max_grad_norm and ppo.clip_scores",
        [
            {
                "query_ids": list(batch.queries[i]),
                "response_ids": list(batch.responses[i]),
                "old_logprobs": batch.logprobs_BT[i].tolist(),
                "advantages": batch.advantages_BT[i].tolist(),
            }
            for i in rows
        ],
    )


class OutOfMemory(RLHFError):
    """A pass over a micro-batch found no memory."""


@contextmanager
def memory_advice(tokens: int) -> Iterator[None]:
    """Inside the block, which works through micro-batches of `tokens` tokens, running out of memory raises OutOfMemory
    with the size to try."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(phrase in str(error) for phrase in _NO_MEMORY):
            raise
        raise OutOfMemory(
            f"out of memory in a pass over {tokens} tokens: set ppo.micro_batch_tokens to {max(tokens // 2, 1)}; where "
            "that is less than one query with its response, set policy.gradient_checkpointing or shorten responses"
        ) from error
