"""What later stages will need, checked before anything costly: device, models, data sets, labels, tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

import yaml

from rlhf_lib.errors import ModelError, RecipeError
from rlhf_lib.recipe import Recipe
from rlhf_lib.recipe.judges import check_judges


def check_requirements(recipe: Recipe) -> list[str]:
    """Raise RLHFError naming the first thing that is missing. Registry URIs must have been resolved to folders. Returns
    what should make people wonder, a sentence each."""
    from rlhf_lib.data.corpus import load_texts
    from rlhf_lib.evaluation.harness import check_tasks
    from rlhf_lib.evaluation.opinions import check_judge
    from rlhf_lib.evaluation.probes import probe_tokens
    from rlhf_lib.models.chat import policy_tokenizer
    from rlhf_lib.models.device import pick_device
    from rlhf_lib.models.loading import load_config
    from rlhf_lib.plan.memory import NoOutline, policy_config, policy_outline
    from rlhf_lib.ppo.evaluation import import_metrics
    from rlhf_lib.ppo.optimizer import check_optimizer
    from rlhf_lib.rewards.build import check_reward
    from rlhf_lib.rewards.critic import check_critic

    pick_device(recipe.compute)
    check_optimizer(recipe.ppo)
    import_metrics(recipe.evaluation.metrics)
    check_accelerate(recipe)
    if recipe.evaluation.lm_eval is not None:
        check_tasks(recipe.evaluation.lm_eval)
    scratch = recipe.policy.train.from_scratch if recipe.policy.train else None
    seq2seq = scratch is not None and scratch.architecture == "t5"
    chat = recipe.policy.chat_template is not None
    if recipe.policy.model is not None:
        seq2seq = bool(load_config(recipe.policy.model, recipe.policy.trust_remote_code).is_encoder_decoder)
        tokenizer = policy_tokenizer(recipe.policy)
        probe_tokens(recipe.evaluation.probes, tokenizer)
        chat = tokenizer.chat_template is not None
    check_reward(recipe.reward, trained_here=recipe.data.labelled is not None)
    check_columns(recipe)
    check_critic(recipe)
    check_distinct(recipe)
    if recipe.policy.lora is not None or recipe.policy.unfrozen_layers is not None:
        with suppress(NoOutline):
            policy_outline(recipe, policy_config(recipe))  # raises where they don't fit the architecture
    if recipe.evaluation.perplexity is not None:
        load_texts(
            recipe.evaluation.perplexity,
            recipe.data.prompts.dataset,
            seed=recipe.seed,
            prompts=recipe.data.prompts if seq2seq else None,
            chat=recipe.policy if chat else None,
        )
    remarks: list[str | None] = [check_judge(name, judge) for name, judge in recipe.evaluation.judges.items()]
    if chat:
        remarks.append(check_chat(recipe, seq2seq))
    return [remark for remark in remarks if remark]


def check_chat(recipe: Recipe, seq2seq: bool) -> str | None:
    """Raise ModelError for a chat template that can't do what the recipe wants of it. Returns what should make people
    wonder: an end of turn that ends no answer."""
    from rlhf_lib.models.chat import check_system, policy_tokenizer, training_template, turn_end
    from rlhf_lib.models.loading import load_generation_config, load_tokenizer
    from rlhf_lib.plan.trial import leaves

    policy = recipe.policy
    if seq2seq:
        raise ModelError("policy.chat_template is for causal models, and this is a seq2seq model: set it to null")
    for reward in (recipe.reward, *recipe.evaluation.judges.values()):
        for leaf in leaves(reward):
            if policy.system and leaf.model is not None and leaf.kind in ("classifier", "preference"):
                check_system(
                    load_tokenizer(leaf.model, leaf.trust_remote_code, need_eos=False), policy.system, leaf.model
                )
    if policy.model is None:
        return None
    tokenizer = policy_tokenizer(policy)
    if policy.train is not None:
        if not policy.train.completion_only:
            training_template(tokenizer)
        return None
    ends = load_generation_config(policy.model, policy.trust_remote_code).eos_token_id
    known = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    if (end := turn_end(tokenizer)) is None or end in known:
        return None
    return (
        f"the chat template ends a turn with {tokenizer.decode([end])}, which is none of the EOS ids in the generation "
        f"config of {policy.model}: its answers may run on. Add it there, or train it to end (policy.train)"
    )


def check_columns(recipe: Recipe) -> None:
    """Raise RecipeError for a function, the reward's or a judge's, that needs a column which the prompts don't have."""
    from rlhf_lib.data.prompts import other_columns
    from rlhf_lib.data.sources import load_split
    from rlhf_lib.rewards import function
    from rlhf_lib.rewards.build import needed_columns
    from rlhf_lib.rewards.judging import judging

    prompts, judges = recipe.data.prompts, recipe.evaluation.judges
    needed: dict[str | None, dict[str, list[str]]] = {None: needed_columns(recipe.reward)}
    needed |= {name: needed_columns(judge) for name, judge in judges.items()}
    if not any(needed.values()):
        return
    sets = [prompts] if prompts.test is None else [prompts, prompts.test]
    there = [other_columns(recipe, load_split(source, default=prompts.dataset)) for source in sets]
    if needed[None] and recipe.reward.checks.probes:
        _without_columns("reward.checks.probes", needed[None])
    asked = [needed[name] for name in (None, *recipe.judges_in_ppo) if needed[name]]
    if asked and recipe.ppo.eval_texts:
        _without_columns("ppo.eval_texts", asked[0])
    for name, functions in needed.items():
        with judging(name) if name else nullcontext():
            for path, names in functions.items():
                for columns in there:
                    function.check_columns(path, names, columns)


def _without_columns(key: str, needed: Mapping[str, list[str]]) -> None:
    path, names = next(iter(needed.items()))
    raise RecipeError(f"{key} are texts alone, and reward.function {path} needs the column {names[0]}: leave them out")


def check_accelerate(recipe: Recipe) -> None:
    """Raise RecipeError for a configuration of Accelerate that isn't there, or can't do what the recipe wants of it."""
    from rlhf_lib.ppo.parallel import DEEPSPEED, WARMUP_UNDER_DEEPSPEED

    if (name := recipe.compute.accelerate) is None:
        return
    if not Path(name).is_file():
        raise RecipeError(f"compute.accelerate {name}: no such file. Name one, or set it to null")
    if recipe.ppo.critic_warmup:
        configured = yaml.safe_load(Path(name).read_text())
        if isinstance(configured, dict) and configured.get("distributed_type") == DEEPSPEED:
            raise RecipeError(WARMUP_UNDER_DEEPSPEED)


def check_distinct(recipe: Recipe) -> None:
    """Raise RecipeError for a judge that turns out to be the reward: another name of the same model or function."""
    from rlhf_lib.rewards.function import import_function

    labelled, pairs = recipe.data.labelled is not None, recipe.data.preferences is not None
    judges, reward = recipe.evaluation.judges, recipe.reward
    try:
        check_judges(judges, reward, pairs=pairs, labelled=labelled)  # again: registry URIs are folders now
    except ValueError as error:
        raise RecipeError(str(error)) from None
    for name, judge in judges.items():
        if judge.function and reward.function and import_function(judge.function) is import_function(reward.function):
            raise RecipeError(
                f"evaluation.judges.{name}: {judge.function} is the reward's function by another name, and so no "
                "judge: set another"
            )
