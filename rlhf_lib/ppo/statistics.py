"""What a step tells of itself, under the names that users of TRL know, and how long its parts took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from rlhf_lib.ppo.objectives import masked_mean

Stats = dict[str, float]


def rollout_statistics(
    raw_scores_B: Tensor,
    scores_B: Tensor,
    *,
    kl_BT: Tensor,
    penalty_BT: Tensor,
    logprobs_BT: Tensor,
    mask_BT: Tensor,
    query_lengths: Sequence[int],
    ended: Sequence[bool],
) -> Stats:
    """Figures of a rollout batch before its updates. KL and entropy are summed over a response's tokens, in nats."""
    lengths_B = mask_BT.sum(1)
    queries_B = torch.tensor(query_lengths, dtype=torch.float)
    return {
        "objective/kl": float(kl_BT.sum(1).mean()),
        "objective/entropy": float(-(logprobs_BT * mask_BT).sum(1).mean()),
        "ppo/mean_scores": float(raw_scores_B.mean()),
        "ppo/std_scores": spread(raw_scores_B),
        "ppo/mean_shaped_scores": float(scores_B.mean()),
        "ppo/std_shaped_scores": spread(scores_B),
        "ppo/mean_non_score_reward": float(masked_mean(-penalty_BT, mask_BT)),
        "tokens/queries_len_mean": float(queries_B.mean()),
        "tokens/queries_len_std": spread(queries_B),
        "tokens/responses_len_mean": float(lengths_B.mean()),
        "tokens/responses_len_std": spread(lengths_B),
        "tokens/eos_rate": sum(ended) / len(ended),
    }


def spread(x: Tensor) -> float:
    """Unbiased standard deviation; 0 for a single value."""
    return float(x.std()) if x.numel() > 1 else 0.0


class Timer:
    """Seconds by name: `with timer("time/ppo/generate"): ...`."""

    def __init__(self) -> None:
        self.seconds: Stats = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
