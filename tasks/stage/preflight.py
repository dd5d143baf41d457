"""Checks before anything costly: missing models, data sets, labels, tokenizers and devices."""

from __future__ import annotations

from typing import Any

from prefect import task

from rlhf_lib.recipe import Recipe
from tasks.registry.policies import resolve_model
from tasks.results import PreparedData
from tasks.stage.options import OPTIONS
from tasks.tracking import run_logger
from tasks.tracking.progress import showing


def preflight(recipe: Recipe) -> Recipe:
    """Check what later stages will need, and return the recipe with registry URIs resolved to folders.

    Raises RLHFError naming the first thing that is missing.
    """
    from rlhf_lib.plan.requirements import check_requirements

    recipe = resolve(recipe)
    for remark in check_requirements(recipe):
        run_logger().warning("%s", remark)
    return recipe


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with registry URIs resolved to folders. Raises ModelError for a version that isn't there."""
    recipe = recipe.model_copy(deep=True)
    sections: list[Any] = [recipe.policy, recipe.reward, *recipe.evaluation.judges.values()]
    for section in sections:
        if section.model is not None:
            section.model = resolve_model(section.model)
    return recipe


def announce(recipe: Recipe, data: PreparedData) -> None:
    """Before any training: call the reward, the judges and the metrics on a few of the run's own texts, and tell what
    the run comes to.

    Raises ModelError where the reward or a judge doesn't score them, RewardFailed where one of them or a metric raises.
    """
    from datasets import load_from_disk

    from rlhf_lib.data.prompts import draw_prompts
    from rlhf_lib.plan import words
    from rlhf_lib.plan.memory import Batch
    from rlhf_lib.plan.plan import check_thresholds, describe_judge, gate_thresholds, measure_size
    from rlhf_lib.plan.trial import try_judges, try_metrics, try_reward

    logger = run_logger()
    pairs = load_from_disk(data.preferences.test) if data.preferences else None
    try_metrics(recipe, pairs)
    scores = try_reward(recipe, pairs)
    if scores:
        logger.info("reward: tried on %d texts: %.3g to %.3g", len(scores), min(scores), max(scores))
    for name, tried in try_judges(recipe, pairs).items():
        if tried:
            logger.info("judge %s: tried on %d texts: %.3g to %.3g", name, len(tried), min(tried), max(tried))
    held_out = load_from_disk((data.prompts or data.texts).test)
    for name, judge in recipe.evaluation.judges.items():
        if judge.kind == "llm":
            asked = len(draw_prompts(held_out, recipe))
            logger.info("judge %s: %s", name, describe_judge(judge, asked, len(pairs) if pairs else 0))
    longest = data.metrics.get("prompt_tokens/train/max") or data.metrics.get("prompt_characters/train/max", 0) / 3
    size = measure_size(recipe, Batch.of(recipe, max(1, int(longest))))
    if size is not None:
        needed, free = size.memory["total"], size.free
        logger.info(
            "plan: PPO of %d steps, %d responses each; %s of %s parameters learn, in about %s of memory",
            recipe.ppo.steps,
            recipe.ppo.batch_size,
            words.count(size.parameters["trained"]),
            words.count(size.parameters["policy"]),
            words.size(needed),
        )
        if free is not None and needed > free:
            logger.warning(
                "PPO needs about %s of memory, but %s is free: lower ppo.micro_batch_tokens, or set policy.lora",
                words.size(needed),
                words.size(free),
            )
    for name, found in (("reward.checks", check_thresholds(recipe)), ("gates", gate_thresholds(recipe))):
        logger.info("%s: %s", name, words.thresholds(found))


preflight_task = task(name="preflight", **OPTIONS)(showing("preflight")(preflight))
