"""Checks before anything costly: missing models, data sets, labels, tokenizers and devices."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from rlhf_lib.errors import RecipeError
from rlhf_lib.recipe import Recipe
from tasks.registry.policies import resolve_model
from tasks.stage.options import OPTIONS
from tasks.tracking.progress import showing


def preflight(recipe: Recipe) -> Recipe:
    """Check what later stages will need, and return the recipe with registry URIs resolved to folders.

    Raises RLHFError naming the first thing that is missing.
    """
    from rlhf_lib.data.corpus import load_texts
    from rlhf_lib.evaluation.probes import probe_tokens
    from rlhf_lib.models.device import pick_device
    from rlhf_lib.models.loading import load_config, load_tokenizer
    from rlhf_lib.ppo.optimizer import check_optimizer
    from rlhf_lib.rewards.build import check_reward

    pick_device(recipe.compute)
    check_optimizer(recipe.ppo)
    if recipe.compute.accelerate is not None and not Path(recipe.compute.accelerate).is_file():
        raise RecipeError(f"compute.accelerate {recipe.compute.accelerate}: no such file")
    recipe = recipe.model_copy(deep=True)
    for section in (recipe.policy, recipe.reward):
        if section.model is not None:
            section.model = resolve_model(section.model)
    scratch = recipe.policy.train.from_scratch if recipe.policy.train else None
    seq2seq = scratch is not None and scratch.architecture == "t5"
    if recipe.policy.model is not None:
        seq2seq = bool(load_config(recipe.policy.model, recipe.policy.trust_remote_code).is_encoder_decoder)
        tokenizer = load_tokenizer(recipe.policy.model, recipe.policy.trust_remote_code)
        probe_tokens(recipe.evaluation.probes, tokenizer)
    check_reward(recipe.reward, trained_here=recipe.data.labelled is not None)
    if recipe.evaluation.perplexity is not None:
        load_texts(
            recipe.evaluation.perplexity,
            recipe.data.prompts.dataset,
            seed=recipe.seed,
            prompts=recipe.data.prompts if seq2seq else None,
        )
    return recipe


preflight_task = task(name="preflight", **OPTIONS)(showing("preflight")(preflight))
