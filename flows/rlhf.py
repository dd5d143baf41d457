"""The pipeline: datasets, base model, reward model and its checks, PPO, evaluation, registration.

python -m flows.rlhf [RECIPE]        or        rlhf run RECIPE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.runtime import flow_run

from flows.cli.summary import build_record
from flows.orchestration import form, logs
from flows.orchestration.deadline import time_limit
from flows.orchestration.hooks import HOOKS
from flows.servers.environment import check, run_dir
from rlhf_lib.recipe import Recipe, load_recipe

logs.calm()


def run_name() -> str:
    """`rlhf-RECIPE`, of the flow run that is under way."""
    given = flow_run.parameters
    return f"rlhf-{Path(given['recipe_file']).stem if given.get('recipe_file') else given['recipe']}"


@flow(name="rlhf", flow_run_name=run_name, persist_result=False, result_serializer="json", **HOOKS)
def rlhf(
    recipe: form.RecipeName = "embedded",
    ppo_steps: form.Steps = None,
    learning_rate: form.LearningRate = None,
    kl_coef: form.KLCoefficient = None,
    batch_size: form.BatchSize = None,
    seed: form.Seed = None,
    reward_label: form.Label = None,
    promote: form.Promote = True,
    overrides: form.Overrides = None,
    recipe_file: form.RecipeFile = None,
    fresh: form.Fresh = False,
    minutes: form.Minutes = None,
) -> dict[str, Any]:
    """Run a recipe end to end.

    Args:
        recipe: What is run: one of the shipped recipes.
        promote: Off: a version that passes its gates stays challenger. On: as the recipe says.
        overrides: Any other setting of the recipe, one a line: section.key=value, as in generation.temperature=0.9.
            They come after the fields above.
        recipe_file: A YAML file of your own instead, on the machine that runs it.
        fresh: Do everything anew instead of reusing unchanged stages.
        minutes: End the run after so many minutes; PPO keeps its last step. Empty: never.
    """
    filled = form.settings(locals())
    loaded = load_recipe(recipe_file or recipe, [*filled, *(overrides or [])])
    check()
    with time_limit(minutes):
        return run_pipeline(loaded, fresh=fresh)


rlhf.__signature__ = form.signature(rlhf.fn)  # type: ignore[attr-defined]


def run_pipeline(recipe: Recipe, *, fresh: bool = False) -> dict[str, Any]:
    """The stages in their order, under one MLflow parent run; returns the run's record."""
    from tasks.base_model import given_policy, train_base_model
    from tasks.data import prepare_data
    from tasks.evaluation import evaluate_policy
    from tasks.ppo import run_ppo
    from tasks.registration import register_policy
    from tasks.reward_checks import check_reward_model
    from tasks.reward_model import prepare_reward_model
    from tasks.stage.preflight import preflight_task
    from tasks.tracking.runs import headline, mlflow_link, pipeline_run

    context = {"prefect_flow_run_id": flow_run.id, "prefect_flow_run_url": flow_run.ui_url}
    with pipeline_run(recipe, str(run_dir()), fresh=fresh, tags=context) as run:
        create_link_artifact(
            mlflow_link(run.parent_run_id), "This run in MLflow", key="mlflow", description=recipe.name
        )
        recipe = preflight_task(recipe)
        data = prepare_data(recipe, run)
        policy = given_policy(recipe, data) if recipe.policy.train is None else train_base_model(recipe, run, data)
        reward = prepare_reward_model(recipe, run, data, policy)
        checks = check_reward_model(recipe, run, data, reward)
        ppo = run_ppo(recipe, run, data, policy, reward)
        evaluation = evaluate_policy(recipe, run, policy, reward, ppo)
        model = register_policy(recipe, run, policy, reward, ppo, evaluation, checks=checks, data=data)
        record = build_record(recipe.name, run.parent_run_id, checks, ppo, evaluation, model)
        run.finish(record)
        figures = [{"figure": name, "value": value} for name, value in headline(record).items()]
        create_table_artifact(figures, key="figures", description=f"{recipe.name}: headline figures")
    return record


if __name__ == "__main__":
    from flows.cli import main

    sys.exit(main(["run", *(sys.argv[1:] or ["embedded"])]))
