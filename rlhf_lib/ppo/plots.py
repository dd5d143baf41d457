"""The curves that people look at first: score, KL, losses, response length, entropy."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from rlhf_lib.drawing import panels
from rlhf_lib.ppo.statistics import Stats

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
    figure, every = panels(len(PANELS), 4, 3.25, columns=3)
    steps = range(1, len(history) + 1)
    for axes, (title, names) in zip(every, PANELS.items(), strict=True):
        for name in names:
            values = [stats[name] for stats in history]
            axes.plot(steps, values, color="#2f6db3", linewidth=1.5)
            if name == "ppo/mean_scores":
                spread = [stats["ppo/std_scores"] for stats in history]
                low, high = zip(*((v - s, v + s) for v, s in zip(values, spread, strict=True)), strict=True)
                axes.fill_between(steps, low, high, color="#2f6db3", alpha=0.15, linewidth=0, label="±1 std")
                axes.legend(frameon=False, loc="lower right")
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("PPO step")
        axes.grid(alpha=0.25)
    return figure
