"""What the checks of a reward give: each check's figure against its threshold, and all of them together."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass, field
from typing import Any

from rlhf_lib.errors import GateFailed
from rlhf_lib.recipe import ChecksConfig
from rlhf_lib.rewards.check_measures import Reliability, Scores
from rlhf_lib.statistics import LEAST_FOR_INTERVAL

# check -> what its figure is, in words, and the key under reward.checks that holds its threshold (none: it has to be 0)
FIGURES = {
    "finite_scores": ("the number of NaN or infinite scores", None),
    "pairs": ("the number of held-out pairs", "min_pairs"),
    "accuracy": ("the lower bound of the share of held-out pairs with chosen above rejected", "min_accuracy"),
    "gain_over_length": (
        "the lower bound of the gain in accuracy over preferring the longer answer",
        "min_gain_over_length",
    ),
    "gain_over_ngrams": (
        "the lower bound of the gain in accuracy over a model that knows the answers' wording alone",
        "min_gain_over_ngrams",
    ),
    "transfer": ("the lower bound of the accuracy on pairs from elsewhere", "min_transfer_accuracy"),
    "prompt_sensitivity": (
        "the lower bound of the share of chosen answers that score higher with their own prompt than with another's",
        "min_prompt_sensitivity",
    ),
    "calibration": (
        "how far the share of pairs in order falls short of what the scores claim",
        "max_calibration_error",
    ),
    "disagreement": ("the standard deviation over the ensemble's members, of the pairs' answers on average", None),
    "length_bias": ("the absolute rank correlation of score and length", "max_length_correlation"),
    "probes": ("the share of probes in their order", "min_probe_accuracy"),
    "score_spread": ("the standard deviation of the scores", "min_score_std"),
    "degenerate": ("the share of degenerate responses that beat a real one", "max_degenerate_win_rate"),
    "stock_phrase": ("the share of chosen answers that one phrase alone beats", "max_phrase_win_rate"),
    "timeouts": ("the number of answers that the isolated function couldn't score", None),
    "batch_agreement": ("the largest difference between a text's score alone and in a batch", "max_batch_difference"),
}


@dataclass(frozen=True)
class Check:
    """One value against its threshold; `bound` says on which side of it the value must be."""

    name: str
    figure: float
    threshold: float | None
    bound: str  # at least | above | at most
    passed: bool
    detail: str

    @classmethod
    def judge(cls, name: str, figure: float, threshold: float | None, bound: str, detail: str = "") -> Check:
        figure = float(figure)
        meets = {"at least": operator.ge, "above": operator.gt, "at most": operator.le}[bound]
        passed = threshold is None or bool(meets(figure, threshold))
        return cls(name, figure, threshold, bound, passed, detail)

    def __str__(self) -> str:
        """`accuracy: the share of held-out pairs with chosen above rejected is 0.52, must be at least 0.6 (...)`"""
        must = "is not gated" if self.threshold is None else f"must be {self._must}"
        return f"{self.name}: {self.what} is {self.figure:.4g} and {must} ({self.detail})"

    @property
    def _must(self) -> str:
        return f"{'' if self.key is None else f'{self.bound} '}{self.threshold:g}"

    @property
    def brief(self) -> str:
        """`accuracy 0.52 (at least 0.6)`"""
        return f"{self.name} {self.figure:.3g} ({'not gated' if self.threshold is None else self._must})"

    @property
    def what(self) -> str:
        """What the figure is."""
        return FIGURES[self.name][0]

    @property
    def key(self) -> str | None:
        """The recipe's key of the threshold."""
        key = FIGURES[self.name][1]
        return key and f"reward.checks.{key}"


@dataclass
class CheckReport:
    """The checks that apply, all metrics, flat, and the scores behind the plots; `pairs` that the accuracy is of."""

    checks: list[Check] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)  # chosen and rejected, or response
    lengths: dict[str, Scores] = field(default_factory=dict)  # characters, as scores
    reliability: Reliability | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)  # texts with their scores, the most telling first
    pairs: int = 0
    gates_off: list[str] = field(default_factory=list)  # sentences, see `gates_off`

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    @property
    def accuracy(self) -> float | None:
        return self.metrics.get("accuracy")

    def as_dicts(self) -> list[dict[str, Any]]:
        return [asdict(check) | {"what": check.what} for check in self.checks]

    def raise_if_failed(self) -> None:
        """Raise GateFailed naming every failed check, its value, its threshold and what to do."""
        if not self.failed:
            return
        names = {check.name for check in self.failed}
        fix = "Give data.preferences more held-out pairs" if names == {"pairs"} else "Improve the reward or its data"
        if keys := [check.key for check in self.failed if check.key]:
            fix += f", or change the recipe's {' and '.join(keys)}, which null switches off"
        if "finite_scores" in names:
            fix = f"A reward has to give a finite number for any text. {fix}" if keys else "Make it finite for any text"
        raise GateFailed(f"the reward failed its checks: {'; '.join(map(str, self.failed))}. {fix}")

    def add(self, name: str, figure: float, threshold: float | None, bound: str, detail: str) -> None:
        self.checks.append(Check.judge(name, figure, threshold, bound, detail))

    def add_length(self, rho: float | None, threshold: float | None, count: int, detail: str) -> None:
        """The check of `length_bias`, which a handful of texts can't fail; none where the correlation is undefined."""
        if rho is None:
            return
        self.metrics["length_correlation"] = rho
        if count < LEAST_FOR_INTERVAL:
            threshold, detail = None, f"{detail}, too few to judge by"
        self.add("length_bias", abs(rho), threshold, "at most", f"rank correlation {rho:+.2f}, {detail}")


def gates_off(checks: ChecksConfig) -> list[str]:
    """A sentence for each gate that the recipe switches off for a reason, and one for those without."""
    told = [f"The reward's gate {name} is off: {why.rstrip('.')}." for name, why in checks.switched_off.items() if why]
    silent = [name for name, why in checks.switched_off.items() if not why]
    if silent:
        gates = f"gate {silent[0]} is" if len(silent) == 1 else f"gates {', '.join(silent[:-1])} and {silent[-1]} are"
        told.append(f"The reward's {gates} off, and reward.checks.why doesn't say why.")
    return told
