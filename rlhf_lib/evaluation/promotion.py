"""Whether a new policy may take the champion's place: gates over its evaluation, and a duel with the champion."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from datasets import Dataset

from rlhf_lib.errors import JudgeFailed
from rlhf_lib.evaluation.compare import compare_folders
from rlhf_lib.evaluation.measures import RewardDelta, reward_delta
from rlhf_lib.evaluation.opinions import Judge, gain
from rlhf_lib.evaluation.results import ModelSource
from rlhf_lib.recipe import GatesConfig, GenerationConfig, PolicyConfig
from rlhf_lib.rewards import Reward, sampled_scores
from rlhf_lib.rewards.columns import with_ids
from rlhf_lib.statistics import counted, no_interval


@dataclass(frozen=True)
class Gate:
    """One figure against its threshold, and what was found in words."""

    name: str
    figure: float | None  # None: it could not be had
    threshold: float
    passed: bool
    detail: str

    @classmethod
    def judge(cls, name: str, figure: float, bound: str, threshold: float, found: str) -> Gate:
        """`found`: what the figure is, with its value, for people. NaN never passes."""
        return cls(name, figure, threshold, _HOLDS[bound](figure, threshold), f"{found} must be {bound} {threshold:g}")


_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "above": operator.gt,
    "at least": operator.ge,
    "at most": operator.le,
}

_UNHELD = (
    "it was evaluated on its training prompts, since data.prompts.held_out is 0; set registration.gates.allow_unheld "
    "to true to promote it all the same"
)


def judge(
    gates: GatesConfig, evaluation: Mapping[str, Any], duel: Mapping[str, Any] | None
) -> tuple[bool, list[dict[str, Any]], str]:
    """(passed, [{name, figure, threshold, passed, detail}], reason) of a candidate.

    `evaluation` holds reward (delta, ci95, prompts), `judges` by name where there are any, perplexity or None,
    answer_perplexity where `trained_on` says "answers" (see `gated_perplexity`), diversity and kl of policy against
    reference, `lm_eval` by task where there are any, and `held_out`: false where the prompts were training prompts,
    which only `allow_unheld` lets pass.
    `duel` is what `compare_policies` returns, {"error": why} where the champion couldn't be compared, None where there
    is none. Its `champion_reward` is the same under the reward that the champion was trained for, {"error": why} where
    that couldn't be had, and absent where it is this policy's own; its `judges` the same by each judge. The champion
    must be beaten under all of them. A judge that failed, and doesn't only report, lets nothing pass. Gates that are
    switched off, or whose value doesn't apply (perplexity without a set), are left out.
    """
    reward, diversity = evaluation["reward"], evaluation["diversity"]
    what, perplexity = gated_perplexity(evaluation)
    results: list[Gate] = []
    held_out = evaluation.get("held_out", True)
    if gates.min_prompts is not None and held_out:  # of a closed set there are no more
        found = f"the number of evaluation prompts is {reward['prompts']} and"
        gate = Gate.judge("min_prompts", reward["prompts"], "at least", gates.min_prompts, found)
        if not gate.passed:
            more = "evaluation.prompts and data.prompts.held_out or .test set it"
            gate = replace(gate, detail=f"{gate.detail} ({more})")
        results.append(gate)
    if gates.min_reward_delta is not None:
        least, found = _gain(reward, "the reference")
        results.append(Gate.judge("min_reward_delta", least, "above", gates.min_reward_delta, found))
    for name, judged in (evaluation.get("judges") or {}).items():
        if gates.min_judge_delta is not None and judged["only_reports"] is None:
            if why := judged.get("failed"):
                results.append(Gate(f"judge/{name}", None, gates.min_judge_delta, False, f"judge {name} failed: {why}"))
                continue
            least, found = _gain(judged, "the reference", f"the mean gained by judge {name}")
            results.append(Gate.judge(f"judge/{name}", least, "above", gates.min_judge_delta, found))
    for name, found in (evaluation.get("lm_eval") or {}).items():
        if gates.min_lm_eval_delta is not None:
            results.append(_keeps(name, found, gates.min_lm_eval_delta))
    ratio, found = _ratio(what, perplexity.get("reference"), perplexity.get("policy"))
    if ratio is not None and gates.max_perplexity_ratio is not None:
        results.append(Gate.judge("max_perplexity_ratio", ratio, "at most", gates.max_perplexity_ratio, found))
    if gates.max_kl is not None:
        found = f"the KL to the reference is {evaluation['kl']:.4g} nats per response and"
        results.append(Gate.judge("max_kl", evaluation["kl"], "at most", gates.max_kl, found))
    ratio, found = _ratio("distinct-2", diversity.get("distinct_2_reference"), diversity.get("distinct_2_policy"))
    if ratio is not None and gates.min_distinct_2_ratio is not None:
        results.append(Gate.judge("min_distinct_2_ratio", ratio, "at least", gates.min_distinct_2_ratio, found))
    if not (held_out or gates.allow_unheld):
        results.append(Gate("held_out", 0.0, 1.0, False, _UNHELD))
    if duel:
        results += _beats_champion(gates, duel, reward["prompts"])
        for name, judged in duel.get("judges", {}).items():
            if why := judged.get("error"):
                told = f"no comparison with the champion (version {duel['version']}) by judge {name}: {why}"
                results.append(Gate(f"beats_champion/{name}", None, 0.0, False, told))
                continue
            least, found = _gain(
                judged, f"the champion (version {duel['version']})", f"the mean gained by judge {name}"
            )
            results.append(Gate.judge(f"beats_champion/{name}", least, "above", 0.0, found))
    failed = [f"{gate.name}: {gate.detail}" for gate in results if not gate.passed]
    if failed:
        reason = "; ".join(failed)
    elif duel:
        reason = f"all gates passed, and the mean score gained over the champion is {_interval(duel)}"
        theirs = duel.get("champion_reward") or {}
        if "error" in theirs:
            reason += f"; under this policy's reward alone, since the champion's can't be had: {theirs['error']}"
        elif theirs:
            reason += f", under the champion's own reward {_interval(theirs)}"
    else:
        gained = f"the mean score gained over the reference is {_interval(reward)}"
        reason = f"all gates passed, and there was no champion; {gained}"
    return not failed, [asdict(gate) for gate in results], reason


def gated_perplexity(evaluation: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(its name in words, {reference, policy}) of the perplexity that the model was trained for: the answers' where it
    learned answers alone and there are some, else the whole texts'; empty where there is none."""
    if evaluation.get("trained_on") == "answers" and (answers := evaluation.get("answer_perplexity")):
        return "perplexity of the answers", answers
    return "perplexity", evaluation["perplexity"] or {}


def _beats_champion(gates: GatesConfig, duel: Mapping[str, Any], prompts: int) -> list[Gate]:
    """Under the candidate's reward and, where that is another one that could be had, the champion's."""
    first = _wins_duel(gates, duel, prompts)
    theirs = duel.get("champion_reward")
    if first.figure is None or not theirs or "error" in theirs:
        return [first]
    least, found = _gain(theirs, f"the champion (version {duel['version']}) under the champion's own reward")
    return [first, Gate.judge("beats_champion_by_its_reward", least, "above", 0.0, found)]


def _wins_duel(gates: GatesConfig, duel: Mapping[str, Any], prompts: int) -> Gate:
    name, champion = "beats_champion", f"the champion (version {duel['version']})"
    if "error" in duel:
        return Gate(name, None, 0.0, False, f"no comparison with {champion}: {duel['error']}")
    if gates.min_prompts is not None and duel["prompts"] < gates.min_prompts <= prompts:
        fit = f"{duel['prompts']} of the evaluation prompts are short enough for both this policy and {champion}"
        return Gate(name, None, 0.0, False, f"{fit}, but there must be at least {gates.min_prompts} (min_prompts)")
    least, found = _gain(duel, champion)
    return Gate.judge(name, least, "above", 0.0, found)


def _keeps(name: str, found: Mapping[str, Any], threshold: float) -> Gate:
    """A task of the harness; of a metric where less is better, the difference counts the other way round."""
    sign = 1.0 if found["higher_is_better"] else -1.0
    delta, documents = sign * found["delta"], found["documents"]
    way = "policy less reference" if found["higher_is_better"] else "reference less policy"
    told = f"{found['metric']} on {name}, {way}, is {delta:+.4g}"
    if not found["ci95"]:
        least, told = delta, f"{told} ({no_interval(documents, 'document')}); it"
    else:
        least, most = sorted(sign * end for end in found["ci95"])
        interval = f"95% interval {least:.4g} to {most:.4g}, {counted(documents, 'document')}"
        told = f"{told} ({interval}); the interval's lower end"
    return Gate.judge(f"lm_eval/{name}", least, "above", threshold, told)


def _gain(gained: Mapping[str, Any], over: str, what: str = "the mean score gained") -> tuple[float, str]:
    """(what the gain is at least, the same in words): its interval's lower end, or the gain where there is none."""
    ci95 = gained["ci95"]
    found = f"{what} over {over} is {_interval(gained)}"
    return (ci95[0], f"{found}; the interval's lower end") if ci95 else (gained["delta"], f"{found}; it")


def _interval(gained: Mapping[str, Any]) -> str:
    delta, ci95, prompts = gained["delta"], gained["ci95"], gained["prompts"]
    if not ci95:
        return f"{delta:+.4g} ({no_interval(prompts)})"
    return f"{delta:+.4g} (95% interval {ci95[0]:.4g} to {ci95[1]:.4g}, {counted(prompts, 'prompt')})"


def _ratio(what: str, before: float | None, after: float | None) -> tuple[float | None, str]:
    """(after / before, the same in words); None where either is missing."""
    if not before or after is None:
        return None, ""
    return after / before, f"{what} went from {before:.4g} to {after:.4g}, a ratio of {after / before:.4g}, which"


def compare_policies(
    candidate: str,
    champion: str,
    prompts: Dataset,
    reward: Reward,
    generation: GenerationConfig,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    seed: int,
    policy: PolicyConfig | None = None,
    champion_reward: Reward | None = None,
    judges: Mapping[str, Callable[[], Judge]] | None = None,
) -> dict[str, Any]:
    """Two policy folders on the same prompts, drawn with the same seeds, under one reward, the candidate's; with
    `champion_reward` the same responses are scored by that one too, and by the `judges` (each loaded in turn).

    `prompts` has columns query and prompt, and others that rewards may read; those that fit both are used (see
    `encode_for_all`). Returns mean scores, the paired bootstrap interval of candidate - champion (None for a handful of
    prompts), the win rate and the number of prompts; the same by the champion's reward under `champion_reward`, and by
    each judge under `judges`, or {"error": why} for one that failed. Two equal models give equal texts, and so 0.
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
        policy=policy,
    )
    outcome = compared.results[1].gain
    assert outcome is not None
    duel = _outcome(outcome)
    if champion_reward is not None:
        texts = [result.sampled for result in compared.results]
        before, after = (
            sampled_scores(champion_reward, compared.queries, s.texts, s.ended, with_ids(compared.columns, s.ids))
            for s in texts
        )
        duel["champion_reward"] = _outcome(reward_delta(before, after, prompts=compared.queries, seed=seed))
    judged: dict[str, dict[str, Any]] = {}
    for name, load in (judges or {}).items():
        try:
            judged[name] = _outcome(gain(load(), name, compared, seed=seed))
        except JudgeFailed as error:
            judged[name] = {"error": str(error)}
    return duel | {"judges": judged}


def _outcome(outcome: RewardDelta) -> dict[str, Any]:
    found = outcome.record
    return {"candidate": found.pop("policy"), "champion": found.pop("reference")} | found
