"""Keeping the answer's length out of a reward model, where annotators chose longer answers (Singhal et al. 2023, "A
long way to go: investigating length correlations in RLHF").

Length is in characters of the answer, as for the rule "the longer answer wins" in the reward's checks.

balanced: within each quartile of the absolute difference in length, the pairs whose chosen answer is longer weigh as
much in the loss as those whose chosen answer is shorter. Singhal et al., section 3.4, leave pairs out until the
differences are distributed symmetrically; weights use all of them. Length then predicts nothing about a weighted pair.

regressed: the loss becomes -log sigmoid(score_chosen - score_rejected + b x), x = tanh(length difference / its standard
deviation), the length term of AlpacaEval 2 (Dubois et al. 2024), and the score alone is kept. b is fitted first, by
Bradley-Terry on length alone, and then stays: the network learns the residual, as in the "bias product" of Clark et al.
2019 ("Don't take the easy way out", section 3.2) and in He et al. 2019 ("Unlearn dataset bias by fitting the
residual"). Learned together with the network, b would not be identified, for the network can express length too: their
learning rates would share it out. What is good about long answers, and not their length as such, is lost as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl.trainer.reward_trainer import DataCollatorForPreference

from rlhf_lib.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

BINS = 4  # of the absolute length difference, each balanced on its own
_MOST = 20.0  # bound of the length term's weight: a log-odds beyond any real pair's

Floats = NDArray[np.float64]


def length_differences(pairs: Dataset) -> Floats:
    """Characters of the chosen answer less those of the rejected one: (N,)."""
    sides = zip(pairs["chosen"], pairs["rejected"], strict=True)
    return np.array([len(chosen) - len(rejected) for chosen, rejected in sides], dtype=np.float64)


@dataclass(frozen=True)
class Balance:
    """Weights by bin and sign of the length difference: `edges` (BINS - 1,) of its absolute value, `weights` (BINS, 2)
    where the chosen answer is shorter and where it is longer. A tie's weight is 1."""

    edges: Floats
    weights: Floats

    def __call__(self, differences_N: Floats) -> Floats:
        """Each pair's weight: (N,)."""
        bins_N = np.searchsorted(self.edges, np.abs(differences_N))
        weights_N = self.weights[bins_N, (differences_N > 0).astype(int)]
        return np.where(differences_N == 0, 1.0, weights_N)


def fit_balance(differences_N: Floats) -> Balance:
    """Weights of mean 1 under which, in each bin, both signs weigh the same: n / 2 n_sign in a bin of n pairs. A bin
    that lacks a sign can't be balanced and weighs nothing. Raises DataError where that is every bin."""
    _both_signs(differences_N)
    told_M = differences_N[differences_N != 0]
    if not told_M.size:
        return Balance(np.zeros(BINS - 1), np.ones((BINS, 2)))
    edges = np.quantile(np.abs(told_M), np.arange(1, BINS) / BINS)
    bins_M, longer_M = np.searchsorted(edges, np.abs(told_M)), (told_M > 0).astype(int)
    counts = np.zeros((BINS, 2))
    np.add.at(counts, (bins_M, longer_M), 1)
    kept = counts.min(axis=1) > 0
    if not kept.any():
        raise _one_sided()
    totals = np.where(kept, counts.sum(axis=1), 0.0)
    weights = np.divide(totals[:, None] / 2, counts, out=np.zeros_like(counts), where=counts > 0)
    return Balance(edges, weights * (told_M.size / totals.sum()))


def effective_pairs(weights_N: Floats) -> float:
    """How many equally weighted pairs tell as much: (sum w)^2 / sum w^2 (Kish 1965)."""
    return float(weights_N.sum() ** 2 / (weights_N**2).sum())


@dataclass(frozen=True)
class LengthTerm:
    """The log-odds that length alone gives: `weight` * tanh(difference / `scale`)."""

    weight: float
    scale: float

    def __call__(self, differences_N: Floats) -> Floats:
        """Log-odds of the chosen answer: (N,)."""
        return self.weight * np.tanh(differences_N / self.scale)


def fit_length_term(differences_N: Floats) -> LengthTerm:
    """Bradley-Terry on length alone, by maximum likelihood. Raises DataError where the chosen answers are all longer,
    or none is: the term would explain every pair."""
    _both_signs(differences_N)
    scale = float(differences_N.std())
    if scale == 0:  # ties alone
        return LengthTerm(0.0, 1.0)
    features_N = np.tanh(differences_N / scale)

    def loss(weight: float) -> float:
        return float(np.logaddexp(0, -weight * features_N).mean())

    return LengthTerm(float(minimize_scalar(loss, bounds=(-_MOST, _MOST), method="bounded").x), scale)


def _both_signs(differences_N: Floats) -> None:
    if (differences_N != 0).any() and ((differences_N >= 0).all() or (differences_N <= 0).all()):
        raise _one_sided()


def _one_sided() -> DataError:
    return DataError(
        "the chosen answers of the training pairs are longer throughout, or shorter throughout, so length can't be "
        "told from what else makes them better: set reward.train.length_debias to null, or add pairs of the other sort"
    )


@dataclass(frozen=True)
class Debias:
    """What the training pairs tell of length, and the columns that carry it into the loss."""

    balance: Balance | None = None
    term: LengthTerm | None = None

    def columns(self, rows: Dataset, pairs: Dataset) -> Dataset:
        """The tokenized `rows` with `weight`, or with the length term in `margin`, which the loss subtracts."""
        differences_N = length_differences(pairs)
        if self.balance is not None:
            return rows.add_column("weight", self.balance(differences_N).tolist())
        if self.term is not None:
            given = np.array(rows["margin"]) if "margin" in rows.column_names else np.zeros(len(rows))
            rows = rows.remove_columns("margin") if "margin" in rows.column_names else rows
            return rows.add_column("margin", (given - self.term(differences_N)).tolist())
        return rows

    def metrics(self, pairs: Dataset) -> dict[str, float]:
        """What was fitted to the training pairs; nothing without debiasing."""
        found: dict[str, float] = {}
        if self.balance is not None:
            found["length/effective_pairs"] = effective_pairs(self.balance(length_differences(pairs)))
        if self.term is not None:
            found |= {"length/weight": self.term.weight, "length/scale": self.term.scale}
        return found


def fit_debias(kind: str | None, pairs: Dataset) -> Debias:
    """`kind`: reward.train.length_debias. Raises DataError as `fit_balance` and `fit_length_term`."""
    match kind:
        case "balanced":
            return Debias(balance=fit_balance(length_differences(pairs)))
        case "regressed":
            return Debias(term=fit_length_term(length_differences(pairs)))
    return Debias()


class WeightedCollator(DataCollatorForPreference):
    """TRL's batches, with the pairs' `weight` (B,) where rows have one."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if "weight" in examples[0]:
            batch["weight"] = torch.tensor([example["weight"] for example in examples], dtype=torch.float)
        return batch


class WeightedPairs:
    """Mix-in for TRL's RewardTrainer: the mean of the pairs' losses takes their `weight` into account."""

    def compute_loss(
        self: Any, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        inputs = dict(inputs)
        weights_B = inputs.pop("weight", None)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)  # type: ignore[misc]
        if weights_B is not None:
            loss = loss + reweighted(outputs.logits, weights_B, inputs.get("margin"))
        return (loss, outputs) if return_outputs else loss


def reweighted(scores: Tensor, weights_B: Tensor, margin_B: Tensor | None) -> Tensor:
    """What weights change in the mean of the pairs' losses; `scores` (2B, 1): the chosen answers', then the rejected
    ones'."""
    chosen_B, rejected_B = torch.chunk(scores.squeeze(-1), chunks=2)
    logit_B = chosen_B - rejected_B - (0 if margin_B is None else margin_B)
    return -((weights_B - 1) * logsigmoid(logit_B)).mean()
