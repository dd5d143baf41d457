"""What the reward and the judges gave along training, over the square root of the KL: over-optimisation (Gao et al.
2022, "Scaling Laws for Reward Model Overoptimization") is where the reward still rises and a judge falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_lib.recipe.learning import JUDGE

REWARD = "eval/mean_scores"
_PROMPTS = {
    "selection": "training prompts that weren't trained on, and that no other figure here is of",
    "evaluation": "some of the evaluation's prompts",
    "texts": "the prompts of ppo.eval_texts",
}


@dataclass(frozen=True)
class Course:
    """The E evaluations of a PPO run, the first of them before training where `steps` begins with 0.

    `kls`: nats per response. `values`: means by the statistic's name, REWARD first and then the judges', (E,) each.
    `kept`: the step that is exported. `prompts`: selection, evaluation or texts (`PPOResult.evaluated_on`). `stopped`:
    why it ended early, in words.
    """

    steps: list[int]
    kls: list[float]
    values: dict[str, list[float]]
    kept: int
    prompts: str = "evaluation"
    stopped: str | None = None

    @classmethod
    def of(
        cls, evaluations: Sequence[Mapping[str, float]], kept: int, prompts: str, stopped: str | None = None
    ) -> Course | None:
        """From `step` and the statistics eval/... of each; None where no judge was asked, or only once."""
        names = [REWARD, *(name for name in evaluations[0] if name.startswith(JUDGE))] if evaluations else []
        if len(names) < 2 or len(evaluations) < 2:
            return None
        return cls(
            [int(found["step"]) for found in evaluations],
            [found["eval/kl"] for found in evaluations],
            {name: [found[name] for found in evaluations] for name in names},
            kept,
            prompts,
            stopped,
        )

    @property
    def roots(self) -> list[float]:
        """The square roots of the KLs (E,); an estimate below 0 counts as 0."""
        return [max(kl, 0.0) ** 0.5 for kl in self.kls]

    def gains(self, name: str) -> list[float]:
        """What the statistic gained since the first evaluation: (E,)."""
        first = self.values[name][0]
        return [value - first for value in self.values[name]]

    def peak(self, name: str) -> int:
        """The index of the last evaluation with the highest value."""
        values = self.values[name]
        return len(values) - 1 - values[::-1].index(max(values))

    def told(self, name: str) -> str:
        """Of a judge's statistic, in a sentence."""
        judge, values, rewards = name.removeprefix(JUDGE), self.values[name], self.values[REWARD]
        top, last = self.peak(name), len(values) - 1
        if top == last:
            return (
                f"Judge {judge} was highest at the last evaluation ({self._at(last)}): {values[last] - values[0]:+.3g} "
                f"from {self._at(0)}, and {rewards[last] - rewards[0]:+.3g} by the reward."
            )
        moved = rewards[last] - rewards[top]
        beside = "while the reward rose" if moved > 0 else "as the reward fell" if moved < 0 else "at the same reward"
        amount = f" by {abs(moved):.3g}" if moved else ""
        when = f"peaked at {self._at(top)}" if top else "was highest before training"
        return f"Judge {judge} {when} and fell by {values[top] - values[last]:.3g} since, {beside}{amount}."

    @property
    def sentences(self) -> list[str]:
        """What became of each judge, and what was made of it."""
        told = [self.told(name) for name in self.values if name != REWARD]
        if self.stopped:
            told.append(f"PPO stopped after step {self.last}: {self.stopped}.")
        if self.kept != self.last:
            told.append(f"The policy of step {self.kept} is exported and evaluated here, not that of step {self.last}.")
        return told

    @property
    def last(self) -> int:
        """The step of the last evaluation."""
        return self.steps[-1]

    @property
    def note(self) -> str:
        """How it was measured."""
        return (
            f"While it learnt: means over {_PROMPTS[self.prompts]}, answered with the same random numbers each time "
            "(ppo.eval_every, ppo.eval_prompts). A peak is the highest of several noisy means, so somewhat too high."
        )

    def _at(self, index: int) -> str:
        return f"step {self.steps[index]} (KL {self.kls[index]:.2f})" if self.steps[index] else "before training"
