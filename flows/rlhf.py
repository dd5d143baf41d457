"""The pipeline: datasets, base model, reward model and its checks, PPO, evaluation, registration.

rlhf run RECIPE
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.runtime import flow_run

from flows.orchestration import form
from flows.orchestration.hooks import HOOKS
from flows.orchestration.limits import gpu_limit, time_limit
from flows.servers.environment import check, run_dir
from rlhf_lib.recipe import load_recipe


def run_name() -> str:
    """The flow run's name: `rlhf-RECIPE`."""
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
        fresh: Redo every stage instead of reusing unchanged ones.
        minutes: End the run after so many minutes; PPO keeps its last step. Empty: never.
    """
    from tasks.base_model import given_policy, train_base_model
    from tasks.data import prepare_data
    from tasks.evaluation import evaluate_policy
    from tasks.ppo import run_ppo
    from tasks.registration import register_policy
    from tasks.results import run_record
    from tasks.reward_checks import check_reward_model
    from tasks.reward_model import prepare_reward_model
    from tasks.stage.preflight import announce, preflight_task
    from tasks.tracking.runs import headline, mlflow_link, pipeline_run

    filled = form.settings(locals())
    loaded = load_recipe(recipe_file or recipe, [*filled, *(overrides or [])])
    check()
    context = {"prefect_flow_run_id": flow_run.id, "prefect_flow_run_url": flow_run.ui_url}
    with time_limit(minutes), pipeline_run(loaded, str(run_dir()), fresh=fresh, tags=context) as run:
        create_link_artifact(
            mlflow_link(run.parent_run_id), "This run in MLflow", key="mlflow", description=loaded.name
        )
        resolved = preflight_task(loaded)
        data = prepare_data(resolved, run)
        announce(resolved, data)
        with gpu_limit():
            trained = resolved.policy.train is not None
            policy = train_base_model(resolved, run, data) if trained else given_policy(resolved, data)
            reward = prepare_reward_model(resolved, run, data, policy)
            checks = check_reward_model(resolved, run, data, reward)
            ppo = run_ppo(resolved, run, data, policy, reward)
            evaluation = evaluate_policy(resolved, run, policy, reward, ppo, data)
            model = register_policy(resolved, run, policy, reward, ppo, evaluation, checks=checks, data=data)
        record = run_record(loaded.name, run.parent_run_id, checks, ppo, evaluation, model)
        run.finish(record)
        metrics = [{"metric": name, "value": value} for name, value in headline(record).items()]
        create_table_artifact(metrics, key="figures", description=f"{loaded.name}: headline metrics")
    return record


rlhf.__signature__ = form.signature(rlhf.fn)  # type: ignore[attr-defined]

if __name__ == "__main__":  # until the next release; another process, since importing this has imported prefect
    import os
    import sys
    import warnings

    warnings.warn("python -m flows.rlhf RECIPE is now python -m flows.cli run RECIPE", DeprecationWarning, stacklevel=1)
    command = [sys.executable, "-m", "flows.cli", "run", *(sys.argv[1:] or ["embedded"])]
    os.execv(sys.executable, command)
