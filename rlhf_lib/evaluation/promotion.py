"""Whether a new policy may take the champion's place: gates over its evaluation, and a duel with the champion."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from rlhf_lib.evaluation.compare import compare_folders
from rlhf_lib.evaluation.results import ModelSource
from rlhf_lib.recipe import GatesConfig, GenerationConfig
from rlhf_lib.rewards import Reward

if TYPE_CHECKING:
    import torch

Holds = Callable[[float, float], bool]
_WORDS: dict[Holds, str] = {operator.gt: "above", operator.ge: "at least", operator.le: "at most"}


def judge(
    gates: GatesConfig, evaluation: Mapping[str, Any], duel: Mapping[str, Any] | None
) -> tuple[bool, list[dict[str, Any]], str]:
    """(passed, [{name, value, threshold, passed}], reason) of a candidate.

    `evaluation` holds reward.ci95, perplexity or None, diversity and kl of policy against reference, and `held_out`:
    false where the prompts were training prompts, which `allow_unheld` lets pass. `duel` is what
    `compare_policies` returns, {"error": why} where the champion couldn't be compared, None where there is none.
    Gates that are switched off, or whose value doesn't apply (perplexity without a set), are left out. NaN never
    passes.
    """
    perplexity, diversity = evaluation["perplexity"] or {}, evaluation["diversity"]
    rules: list[tuple[str, float | None, Holds, float | None]] = [
        ("min_reward_delta", evaluation["reward"]["ci95"][0], operator.gt, gates.min_reward_delta),
        (
            "max_perplexity_ratio",
            _ratio(perplexity.get("policy"), perplexity.get("reference")),
            operator.le,
            gates.max_perplexity_ratio,
        ),
        ("max_kl", evaluation["kl"], operator.le, gates.max_kl),
        (
            "min_distinct_2_ratio",
            _ratio(diversity.get("distinct_2_policy"), diversity.get("distinct_2_reference")),
            operator.ge,
            gates.min_distinct_2_ratio,
        ),
    ]
    if duel and "error" not in duel:
        rules.append(("beats_champion", duel["ci95"][0], operator.gt, 0.0))
    results, failures = [], []
    for name, value, holds, threshold in rules:
        if value is None or threshold is None:
            continue
        passed = bool(holds(value, threshold))
        results.append({"name": name, "figure": value, "threshold": threshold, "passed": passed})
        if not passed:
            failures.append(f"{name}: {value:.4g} is not {_WORDS[holds]} {threshold:g}")
    if not (evaluation.get("held_out", True) or gates.allow_unheld):
        results.append({"name": "held_out", "figure": 0.0, "threshold": 1.0, "passed": False})
        failures.append(
            "held_out: it was evaluated on its training prompts, since data.prompts.held_out is 0; set "
            "registration.gates.allow_unheld to true to promote it all the same"
        )
    if duel and "error" in duel:
        results.append({"name": "beats_champion", "figure": None, "threshold": 0.0, "passed": False})
        failures.append(f"beats_champion: no comparison, {duel['error']}")
    if failures:
        return False, results, "; ".join(failures)
    if duel:
        return True, results, f"all gates passed, and the score gains {_interval(duel)} on the champion's"
    return True, results, "all gates passed, and there was no champion"


def compare_policies(
    candidate: str,
    champion: str,
    prompts: Dataset,
    reward: Reward,
    generation: GenerationConfig,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    seed: int,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Two policy folders on the same prompts, drawn with the same seeds, under one reward.

    `prompts` has columns query and prompt; those that fit both are used (see `encode_for_all`). Returns mean scores,
    the paired bootstrap interval of candidate - champion, the win rate and the number of prompts. Two equal models give
    equal texts, and so 0.
    Raises ModelError where a model can't be loaded or no prompt fits.
    """
    sources = [ModelSource("champion", champion), ModelSource("candidate", candidate)]
    compared = compare_folders(
        sources,
        prompts,
        reward,
        generation,
        device=device,
        dtype=dtype,
        seed=seed,
        anchor=None,
        trust_remote_code=trust_remote_code,
    )
    outcome = compared.results[1].gain
    assert outcome is not None
    return {
        "candidate": outcome.policy,
        "champion": outcome.reference,
        "delta": outcome.delta,
        "ci95": list(outcome.ci95),
        "win_rate": outcome.win_rate,
        "prompts": len(compared.queries),
    }


def _ratio(policy: float | None, reference: float | None) -> float | None:
    return policy / reference if policy is not None and reference else None


def _interval(duel: Mapping[str, Any]) -> str:
    low, high = duel["ci95"]
    return f"{duel['delta']:+.4g} [{low:.4g}, {high:.4g}]"
