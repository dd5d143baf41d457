"""A step's statistics under the names that users of TRL know, the time its parts took, and the training curves."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lib.ppo.objectives import masked_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        "ppo/std_scores": std(raw_scores_B),
        "ppo/mean_shaped_scores": float(scores_B.mean()),
        "ppo/std_shaped_scores": std(scores_B),
        "ppo/mean_non_score_reward": float(masked_mean(-penalty_BT, mask_BT)),
        "tokens/queries_len_mean": float(queries_B.mean()),
        "tokens/queries_len_std": std(queries_B),
        "tokens/responses_len_mean": float(lengths_B.mean()),
        "tokens/responses_len_std": std(lengths_B),
        "tokens/eos_rate": sum(ended) / len(ended),
    }


class UpdateStatistics:
    """What the updates of a batch told, one mini-batch after the other."""

    def __init__(self) -> None:
        self.told: dict[str, list[tuple[Tensor, float]]] = defaultdict(list)

    def add(self, stats: Mapping[str, Tensor], weight: float) -> None:
        """A mini-batch's means over its tokens; `weight` is `Batch.weight`: 1 unless it is a smaller last one."""
        for name, value in stats.items():
            self.told[name].append((value, weight))

    def means(self) -> Stats:
        """Over the mini-batches, by weight."""
        means = {}
        for name, told in self.told.items():
            values = torch.stack([value for value, _ in told])
            weights = values.new_tensor([weight for _, weight in told])
            means[name] = float((values * weights).sum() / weights.sum())
        return means

    def last(self, name: str) -> float:
        """The last mini-batch's; a smaller one is filled up with the one before it."""
        value, weight = self.told[name][-1]
        if weight < 1 and len(self.told[name]) > 1:
            value = weight * value + (1 - weight) * self.told[name][-2][0]
        return float(value)


def std(x: Tensor) -> float:
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


PANELS = {
    "mean score": ["ppo/mean_scores"],
    "KL to the reference (nats per response)": ["objective/kl"],
    "policy loss": ["ppo/loss/policy"],
    "value loss": ["ppo/loss/value"],
    "response length (tokens)": ["tokens/responses_len_mean"],
    "entropy (nats per token)": ["ppo/policy/entropy"],
}


def training_curves(history: Sequence[Stats]) -> Figure:
    """One panel a quantity over the PPO steps; the mean score with a band of one standard deviation."""
    from rlhf_lib.drawing import panels

    figure, every = panels(len(PANELS), 4, 3.25, columns=3)
    steps = range(1, len(history) + 1)
    for axes, (title, names) in zip(every, PANELS.items(), strict=True):
        for name in names:
            values = [stats[name] for stats in history]
            axes.plot(steps, values, color="#2f6db3", linewidth=1.5)
            if name == "ppo/mean_scores":
                std = [stats["ppo/std_scores"] for stats in history]
                low, high = zip(*((v - s, v + s) for v, s in zip(values, std, strict=True)), strict=True)
                axes.fill_between(steps, low, high, color="#2f6db3", alpha=0.15, linewidth=0, label="±1 std")
                axes.legend(frameon=False, loc="lower right")
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("PPO step")
        axes.grid(alpha=0.25)
    return figure
