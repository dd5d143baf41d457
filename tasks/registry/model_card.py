"""The model card of a registered policy: what it is, what it was made from, how it fared, what it is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlhf_lib.data.joined import items
from rlhf_lib.evaluation.results import UNHELD
from rlhf_lib.recipe import Recipe, RewardConfig, leaves
from rlhf_lib.statistics import Interval, counted, no_interval
from tasks.results import EvaluationResult, PPOResult, RewardArtifact, RewardChecks, StartingPolicy


def model_card(
    recipe: Recipe,
    *,
    name: str,
    policy: StartingPolicy,
    reward: RewardArtifact,
    ppo: PPOResult,
    evaluation: EvaluationResult,
    gates: Iterable[Mapping[str, Any]],
    verdict: str,
    duel: Mapping[str, Any] | None,
    fingerprints: Mapping[str, Any],
    checks: RewardChecks | None,
    talks: bool,
    samples: str,
    pipeline: str,
) -> str:
    """Markdown, from the recipe and the stages' records; `talks`: it's a chat policy; `samples` and `pipeline` are
    links to the evaluation's run and to the parent's. Metrics that don't apply are left out."""
    learned, checked, texts = evaluation.reward, evaluation.perplexity or {}, evaluation.diversity
    answers = evaluation.answer_perplexity or {}
    accuracy = None
    if checks is not None and checks.accuracy is not None and checks.held_out is not None:
        accuracy = f"{cell(checks.accuracy)} ({_interval(checks.ci95, checks.held_out, 'example')})"
    generation, settings = recipe.generation, recipe.ppo
    before_after = [
        ("reward", learned["reference"], learned["policy"]),
        *((f"judge {name}", found["reference"], found["policy"]) for name, found in evaluation.judges.items()),
        *(
            (f"{found['metric']} on {name}", found["reference"], found["policy"])
            for name, found in evaluation.lm_eval.items()
        ),
        ("perplexity (by token)", checked.get("reference"), checked.get("policy")),
        ("perplexity (mean of texts)", checked.get("mean_per_text_reference"), checked.get("mean_per_text_policy")),
        ("perplexity of the answers (by token)", answers.get("reference"), answers.get("policy")),
        ("distinct-1", texts.get("distinct_1_reference"), texts.get("distinct_1_policy")),
        ("distinct-2", texts.get("distinct_2_reference"), texts.get("distinct_2_policy")),
    ]
    template, lora = recipe.data.prompts.template, recipe.policy.lora
    made_from = [
        ("recipe", recipe.name),
        ("base model", recipe.policy.model or "trained from scratch"),
        ("base model's fingerprint", policy.fingerprint),
        ("prompts", ", ".join(str(source.dataset) for source, _ in items(recipe.data.prompts))),
        *((f"fingerprint of {key}", value) for key, value in leaves(fingerprints).items()),
        ("reward", _reward(recipe.reward)),
        ("reward's fingerprint", reward.fingerprint),
        ("reward model's held-out accuracy", accuracy),
        ("PPO", f"{ppo.steps} steps of {settings.batch_size} responses, {settings.ppo_epochs} epochs each"),
        ("seconds of PPO", ppo.seconds),
        ("learning rate", f"{settings.learning_rate:g}, {settings.schedule}"),
        ("KL coefficient", f"{settings.kl_coef:g}, {settings.kl_controller}, estimator {settings.kl_estimator}"),
        ("sampling", f"temperature {generation.temperature:g}, top_k {generation.top_k}, top_p {generation.top_p:g}"),
        ("LoRA", f"rank {lora.r}, merged" if lora else None),
        ("unfrozen blocks", recipe.policy.unfrozen_layers),
        ("seed", recipe.seed),
    ]
    judged = [(g["name"], g["detail"], "yes" if g["passed"] else "no") for g in gates]
    form = f" Prompts have the form {template!r}." if template else ""
    does = "Continues text in the form of its training prompts"
    if talks:
        does = "Answers conversations, in the chat template of its tokenizer"
        said = recipe.policy.system
        form = f" Those without a system message of their own are given {cell(said)!r}." if said else ""
    return f"""# {name}

{recipe.description or "A causal language model trained with PPO against a reward model."}

**{verdict}**

## Intended use and limits

{does}, with up to {generation.response_limit} tokens.{form} Served \
(`rlhf serve {name}`), it answers greedily unless a request sets a temperature. It was optimised for one reward on \
one kind of prompt: a higher score is that reward's opinion, not proof of quality, and says nothing about facts, \
safety or other domains. Read samples before use.

## Before and after

{table(("", "reference", "policy"), [row for row in before_after if row[1] is not None])}

{caveat(evaluation)}Reward delta {cell(learned["delta"])} ({_interval(learned["ci95"], learned["prompts"])}), win rate \
{cell(learned["win_rate"])}; KL to the reference {cell(evaluation.kl)} nats per response.
{_judged(evaluation)}Samples and report: {samples}
Every setting, and the other stages: {pipeline}

## Gates

{table(("gate", "found", "passed"), judged)}
{_off(recipe)}{_against(duel)}
## Made from

{table(("", ""), made_from)}
"""


def _off(recipe: Recipe) -> str:
    """The reward's gates that the recipe switches off, as paragraphs."""
    from rlhf_lib.rewards.check_result import gates_off

    return "".join(f"\n**{sentence}**\n" for sentence in gates_off(recipe.reward.checks))


def caveat(evaluation: EvaluationResult) -> str:
    """A paragraph for prompts that aren't held out; empty for those that are."""
    return "" if evaluation.held_out else f"**{UNHELD}**\n\n"


def table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """A Markdown table; rows whose last cell is None are left out."""
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    lines += [f"| {' | '.join(map(cell, row))} |" for row in rows if row[-1] is not None]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """Four significant digits for a float, - for nothing, and no bar that would end a table's cell."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _judged(evaluation: EvaluationResult) -> str:
    """What each judge, which PPO didn't optimise, says: a line each."""
    lines = []
    for name, found in evaluation.judges.items():
        if found.get("failed"):
            lines.append(f"Judge {name} failed: {found['failed']}.\n")
            continue
        silent = f" It only reports: {found['only_reports']}." if found["only_reports"] else ""
        lines.append(
            f"By judge {name}: {cell(found['delta'])} ({_interval(found['ci95'], found['prompts'])}), win rate "
            f"{cell(found['win_rate'])}, at equal length {cell(found['length_controlled_win_rate'])}.{silent}\n"
        )
    return "".join(lines)


def _against(duel: Mapping[str, Any] | None) -> str:
    if duel is None or "error" in duel:
        return ""
    told = f"\nAgainst the champion, version {duel['version']}, under this candidate's reward: {_duelled(duel)}.\n"
    for name, found in duel.get("judges", {}).items():
        told += f"Under judge {name}: {found.get('error') or _duelled(found)}.\n"
    theirs = duel.get("champion_reward") or {}
    if "error" in theirs:
        return f"{told}Not under the champion's own reward: {theirs['error']}.\n"
    return told + (f"Under the champion's own reward: {_duelled(theirs)}.\n" if theirs else "")


def _duelled(found: Mapping[str, Any]) -> str:
    return (
        f"{cell(found['champion'])} -> {cell(found['candidate'])}, delta {cell(found['delta'])} "
        f"({_interval(found['ci95'], found['prompts'])}), win rate {cell(found['win_rate'])}"
    )


def _interval(ci95: Interval | None, count: int, what: str = "prompt") -> str:
    if ci95 is None:
        return no_interval(count, what)
    return f"95% interval [{cell(ci95[0])}, {cell(ci95[1])}], {counted(count, what)}"


def _reward(reward: RewardConfig) -> str:
    if not reward.parts:
        return f"{reward.kind} {reward.function or reward.model or ''}".strip()
    combined = f", combined by {reward.combine}" if reward.kind == "ensemble" else ""
    return f"{reward.kind} of {len(reward.parts)}{combined}"
