"""The pipeline: datasets, base model, reward model and its checks, PPO, evaluation, registration.

python -m flows.rlhf [RECIPE]        or        rlhf run RECIPE
"""

from __future__ import annotations

import sys
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows import logs
from flows.environment import check, run_dir
from flows.summary import build_record
from rlhf_lib.recipe import Recipe, load_recipe

logs.calm()


@flow(name="rlhf", flow_run_name="rlhf-{recipe}", persist_result=False, validate_parameters=True)
def rlhf(recipe: str = "embedded", overrides: list[str] | None = None, fresh: bool = False) -> dict[str, Any]:
    """Run a recipe end to end.

    Args:
        recipe: name of a shipped recipe, or the path of a YAML file.
        overrides: settings on top of it, each `section.key=value`.
        fresh: do everything anew instead of reusing unchanged stages.
    """
    loaded = load_recipe(recipe, overrides)
    check()
    return run_pipeline(loaded, fresh=fresh)


def run_pipeline(recipe: Recipe, *, fresh: bool = False) -> dict[str, Any]:
    """The stages in their order, under one MLflow parent run; returns the run's record."""
    from tasks.base_model import train_base_model
    from tasks.data import prepare_data
    from tasks.evaluation import evaluate_policy
    from tasks.ppo import run_ppo
    from tasks.preflight import preflight
    from tasks.registration import register_policy
    from tasks.reward_checks import check_reward_model
    from tasks.reward_model import prepare_reward_model
    from tasks.tracking import pipeline_run

    context = {"prefect_flow_run_id": flow_run.id, "prefect_flow_run_url": flow_run.ui_url}
    with pipeline_run(recipe, str(run_dir()), fresh=fresh, tags=context) as run:
        recipe = preflight(recipe)
        data = prepare_data(recipe, run)
        policy = {"model": recipe.policy.model, "prompts": data["prompts"], "fingerprint": data["policy_fingerprint"]}
        if recipe.policy.train is not None:
            base = train_base_model(recipe, run, data)
            policy = {key: base[key] for key in policy}
        reward = prepare_reward_model(recipe, run, data, policy)
        checks = check_reward_model(recipe, run, data, reward)
        ppo = run_ppo(recipe, run, data, policy, reward)
        evaluation = evaluate_policy(recipe, run, policy, reward, ppo)
        model = register_policy(recipe, run, policy, reward, ppo, evaluation, checks=checks, data=data)
        record = build_record(recipe.name, run.parent_run_id, checks, ppo, evaluation, model)
        run.finish(record)
    return record


if __name__ == "__main__":
    from flows.cli import main

    sys.exit(main(["run", *(sys.argv[1:] or ["embedded"])]))
