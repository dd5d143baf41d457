"""`rlhf check`: what a recipe will do, and whether it can, without training anything or starting a server."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_lib.plan.plan import Plan, Size

WIDTH = 100


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
        if any(section.model and section.model.startswith("models:/") for section in (recipe.policy, recipe.reward)):
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
    lines = [*_wrapped(f"{plan.recipe}: {description}" if description else plan.recipe), "", *_rows(plan)]
    lines += ["", *(line for loss in plan.losses for line in _wrapped(_marked(loss, loss in plan.warnings)))]
    texts = "; ".join(f"{NAMES[name]} {found.longest:,} of {found.limit:,}" for name, found in plan.lengths.items())
    lines += _wrapped(f"longest, tokens  {texts}")
    lines += size_lines(plan.size)
    lines += _wrapped(f"time             {_time(plan)}")
    scored = ""
    if plan.scores:
        scored = f"; tried on {len(plan.scores)} texts, scores {min(plan.scores):.3g} to {max(plan.scores):.3g}"
    elif "trained here" not in plan.reward:
        scored = "; not tried, since it is large or not downloaded yet"
    lines += _wrapped(f"reward           {plan.reward}{scored}")
    lines += _wrapped(f"reward.checks    {thresholds(plan.checks)}")
    lines += _wrapped(f"gates            {thresholds(plan.gates)} (registration.gates)")
    return lines


NAMES = {"prompt": "prompt", "base_model": "base model", "reward_model": "reward model"}


def size_lines(size: Size | None) -> list[str]:
    """Parameters, and the memory that PPO needs part by part, with a warning where the device has less."""
    from rlhf_lib.plan.memory import LIBRARIES

    if size is None:
        return ["parameters, memory   unknown for this architecture"]
    counts, needed = size.parameters, size.memory
    lines = _wrapped(
        f"parameters       policy {_count(counts['policy'])}, of which {_count(counts['trained'])} learn in PPO; "
        f"reward {_count(counts['reward'])}"
    )
    sampling = needed["sampling"] > needed["activations"] + needed["logits"]
    left_out = {"total", *(("activations", "logits") if sampling else ("sampling",))}
    parts = " + ".join(f"{part} {_bytes(value)}" for part, value in needed.items() if part not in left_out and value)
    also = f", and {_bytes(LIBRARIES)} for the libraries" if size.device == "cpu" else ""
    free = "" if size.free is None else f"; {_bytes(size.free)} free"
    lines += _wrapped(
        f"memory in PPO    about {_bytes(needed['total'])}{also}{free} ({size.device}, {size.dtype}): {parts}"
    )
    if size.free is not None and needed["total"] > size.free:
        lines += _wrapped(
            "warning: PPO needs more memory than is free: lower ppo.micro_batch_tokens, or set policy.lora"
        )
    return lines


def thresholds(found: dict[str, float]) -> str:
    """Each gate by its key."""
    return ", ".join(f"{key} {value:g}" for key, value in found.items()) or "none"


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
    stages = [f"{name} {_duration(plan.seconds[key])}" for key, name in names.items() if plan.seconds[key]]
    total = sum(value for key, value in plan.seconds.items() if key != "ppo_step")
    ppo = f"PPO {_duration(plan.seconds['ppo'])} ({steps}, {plan.seconds['ppo_step']:.2g} s each)"
    return (
        f"about {_duration(total)}, judging by a few passes of an untrained model here: {ppo}; {'; '.join(stages)}; "
        "loading and logging come on top"
    )


def _marked(text: str, worrying: bool) -> str:
    return f"warning: {text}" if worrying else text


def _wrapped(text: str) -> list[str]:
    indent = " " * 17 if text[15:17] == "  " or text[16:17] == " " else "  "
    return wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False)


def _count(number: float) -> str:
    return f"{number / 1e9:.3g}B" if number >= 1e9 else f"{number / 1e6:.3g}M" if number >= 1e5 else f"{number:,.0f}"


def _bytes(number: float) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} s"
