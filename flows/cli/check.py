"""`rlhf check`: what a recipe will do, and whether it can, without training anything or starting a server."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rlhf_lib.plan import words

if TYPE_CHECKING:
    from rlhf_lib.plan.plan import Plan, Size

WIDTH, HEIGHT, LABEL = 100, 40, 17
UNLIMITED = 1_000_000  # tokens: of models without a table of positions


def add_commands(commands: Any, override_option: Callable[[argparse.ArgumentParser], None]) -> None:
    check = commands.add_parser(
        "check", help="read a recipe's data, try its reward and estimate a run, training nothing"
    )
    check.set_defaults(function=_check)
    check.add_argument("recipe", help="the name of a shipped recipe, or a YAML file of your own")
    check.add_argument("--json", action="store_true", help="print it as JSON")
    override_option(check)


def _check(args: argparse.Namespace) -> int:
    from rlhf_lib.errors import RLHFError
    from rlhf_lib.recipe import load_recipe

    try:
        recipe = load_recipe(args.recipe, args.overrides)
        sections: list[Any] = [recipe.policy, recipe.reward, *recipe.evaluation.judges.values()]
        if any(section.model and section.model.startswith("models:/") for section in sections):
            from tasks.stage.preflight import resolve  # with MLflow, whose registry it asks

            recipe = resolve(recipe)
        from rlhf_lib.plan.plan import make_plan

        plan = make_plan(recipe)
    except RLHFError as error:
        if args.json:
            print(json.dumps({"recipe": args.recipe, "error": str(error)}, indent=2))
        print(f"rlhf: error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(plan.model_dump(), indent=2))
    else:
        print("\n".join(page(plan, recipe.description)))
    return 0


def page(plan: Plan, description: str = "") -> list[str]:
    """The plan as lines for a terminal."""
    head = [*_wrapped(f"{plan.recipe}: {description}" if description else plan.recipe), "", *_rows(plan), ""]
    lines: list[str] = []
    names = {"prompt": "prompt", "base_model": "base model", "reward_model": "reward model"}
    longest = (
        f"{names[name]} {found.longest:,}" + f" of {found.limit:,}" * (found.limit < UNLIMITED)
        for name, found in plan.lengths.items()
    )
    told = {
        "longest, tokens": "; ".join(longest),
        **_size(plan.size),
        "time": _time(plan),
        "reward": _tried(plan.reward, plan.scores),
        **{f"judge {name}": _tried(about, plan.judge_scores.get(name)) for name, about in plan.judges.items()},
        "reward.checks": words.thresholds(plan.checks),
        "gates": f"{words.thresholds(plan.gates)} (registration.gates)",
    }
    for label, text in told.items():
        lines += wrap(f"{label + ' ':<{LABEL}}{text}", WIDTH, subsequent_indent=" " * LABEL, break_long_words=False)
    if plan.size is not None and plan.size.free is not None and plan.size.memory["total"] > plan.size.free:
        lines += _wrapped("warning: PPO needs more than is free: lower ppo.micro_batch_tokens, or set policy.lora")
    return [*head, *_losses(plan, HEIGHT - len(head) - len(lines)), *lines]


def _tried(about: str, scores: list[float] | None) -> str:
    """A reward or judge in words, with the scores that it gave."""
    if scores:
        return f"{about}; tried on {len(scores)} texts, scores {min(scores):.3g} to {max(scores):.3g}"
    return (
        about
        if "trained here" in about or "requests" in about
        else f"{about}; not tried, since it is large or not downloaded yet"
    )


def _losses(plan: Plan, room: int) -> list[str]:
    """As many of the losses as there is room for, the worrying ones first."""
    ordered = sorted(plan.losses, key=lambda loss: loss not in plan.warnings)
    lines: list[str] = []
    for number, loss in enumerate(ordered):
        new = _wrapped(f"warning: {loss}" if loss in plan.warnings else loss)
        last = number == len(ordered) - 1
        if len(lines) + len(new) + (not last) > room:
            return [*lines, f"and {len(ordered) - number} more: rlhf check --json"]
        lines += new
    return lines


def _size(size: Size | None) -> dict[str, str]:
    """Parameters, and the memory that PPO needs part by part."""
    from rlhf_lib.plan.memory import LIBRARIES

    if size is None:
        return {"parameters": "unknown for this architecture, and so is the memory"}
    needed = size.memory
    policy, trained, reward = (words.count(size.parameters[name]) for name in ("policy", "trained", "reward"))
    sampling = needed["sampling"] > needed["activations"] + needed["logits"]
    left_out = {"total", *(("activations", "logits") if sampling else ("sampling",))}
    parts = (f"{part} {words.size(value)}" for part, value in needed.items() if part not in left_out and value)
    also = f", and {words.size(LIBRARIES)} for the libraries" if size.device == "cpu" else ""
    free = "" if size.free is None else f"; {words.size(size.free)} free"
    total = f"about {words.size(needed['total'])}{also}{free} ({size.device}, {size.dtype})"
    return {
        "parameters": f"policy {policy}, of which {trained} learn in PPO; reward {reward}",
        "memory in PPO": f"{total}: {' + '.join(parts)}",
    }


def _rows(plan: Plan) -> Iterator[str]:
    from rlhf_lib.data.losses import LIMITS, SETS

    yield f"{'rows':<34}{'read':>10}{'dropped':>10}{'held out':>10}{'over limit':>12}{'kept':>10}"
    for kind, splits in SETS.items():
        for split, name in splits.items():
            if (funnel := plan.rows.get(kind, {}).get(split)) is None:
                continue
            kept = funnel["kept"]
            lost = sum(count for reason, count in funnel["dropped"].items() if reason not in LIMITS)
            if kind == "prompts":
                tokenized = plan.rows["tokenized"][split]
                lost, kept = lost + tokenized["rows"] - tokenized["kept"], tokenized["kept"]
            held, limited = (funnel["dropped"].get(reason, 0) for reason in ("held out", "limit"))
            yield f"{name:<34}{funnel['rows']:>10,}{lost:>10,}{held:>10,}{limited:>12,}{kept:>10,}"
    if plan.perplexity_texts is not None:
        yield f"{'texts for perplexity':<34}{plan.perplexity_texts:>10,}"


def _time(plan: Plan) -> str:
    steps = f"{plan.steps:,} steps of {plan.batch_size} responses"
    if plan.seconds is None:
        return f"unknown: the policy is too large to be tried here; PPO takes {steps}"
    names = {"base_model": "base model", "reward_model": "reward model", "evaluation": "evaluation"}
    stages = [f"{name} {words.duration(plan.seconds[key])}" for key, name in names.items() if plan.seconds[key]]
    if "classifier trained here" in plan.reward:
        stages.append("the classifier's training comes on top")
    total = sum(value for key, value in plan.seconds.items() if key != "ppo_step")
    ppo = f"PPO {words.duration(plan.seconds['ppo'])} ({steps}, {plan.seconds['ppo_step']:.2g} s each)"
    return (
        f"about {words.duration(total)}, extrapolated from a few passes of an untrained model, without loading and "
        f"logging: {'; '.join([ppo, *stages])}"
    )


def _wrapped(text: str) -> list[str]:
    return wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False)
