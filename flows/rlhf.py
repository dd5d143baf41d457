"""The pipeline: datasets, base model, reward model and its checks, PPO, evaluation, registration.

rlhf run RECIPE
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.runtime import flow_run

from flows.orchestration import form
from flows.orchestration.chain import Chain
from flows.orchestration.hooks import HOOKS
from flows.orchestration.limits import gpu_limit, time_limit
from flows.orchestration.names import describe, typed_name
from flows.servers.environment import check, run_dir
from rlhf_lib.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from tasks.results import StageResult
    from tasks.tracking.runs import PipelineRun


def run_name() -> str:
    """The flow run's name: the one that was typed, else the recipe and what is overridden."""
    given = dict.fromkeys((*form.KNOBS, "recipe_file", "overrides")) | {"promote": True} | flow_run.parameters
    overrides = [*form.settings(given), *(given["overrides"] or [])]
    until = f" until {given['until']}" if given.get("until") else ""
    return typed_name() or describe(given["recipe_file"] or given["recipe"], overrides) + until


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
    until: form.Until = None,
    minutes: form.Minutes = None,
) -> dict[str, Any]:
    """Run a recipe, end to end or up to a stage.

    Args:
        recipe: One of the shipped recipes.
        promote: Off: a version that passes its gates stays challenger. On: as the recipe says.
        overrides: Other settings of the recipe, one per line: section.key=value, as in generation.temperature=0.9.
            They are applied after the fields above.
        recipe_file: A recipe of your own instead: a YAML file on the machine that runs it.
        fresh: Redo every stage instead of reusing unchanged ones.
        until: Stop after this stage, say reward_model to train a reward model alone. A later run goes on from there.
            Empty: run all of them.
        minutes: End the run after this many minutes; PPO keeps its last step. Empty: no limit.
    """
    from tasks.results import run_record
    from tasks.stage.keys import check_stage_of
    from tasks.stage.preflight import preflight_task
    from tasks.tracking.runs import headline, mlflow_link, pipeline_run, runs_link

    filled = form.settings(locals())
    loaded = load_recipe(recipe_file or recipe, [*filled, *(overrides or [])])
    last = check_stage_of(loaded, until) if until else None
    check()
    context = {"prefect_flow_run_id": flow_run.id, "prefect_flow_run_url": flow_run.ui_url, "until": last}
    name, chain = flow_run.name, Chain()
    with time_limit(minutes), pipeline_run(loaded, str(run_dir()), name=name, fresh=fresh, tags=context) as run:
        create_link_artifact(mlflow_link(run.parent_run_id), "This run in MLflow", key="mlflow", description=name)
        create_link_artifact(runs_link(), "All runs in MLflow", key="mlflow-runs", description="Reward, KL, promotion")
        resolved = chain(preflight_task, loaded)
        done: dict[str, StageResult] = {}
        with closing(_stages(resolved, run, chain)) as stages:
            for stage, result in stages:
                done[stage] = result
                if stage == last:
                    break
        record = run_record(loaded.name, run.parent_run_id, done, until=last)
        run.finish(record)
        if metrics := [{"metric": name, "value": value} for name, value in headline(record).items()]:
            create_table_artifact(metrics, key="figures", description=f"{loaded.name}: headline metrics")
        if last:
            rows = [{"stage": name} | stage for name, stage in record["stages"].items()]
            create_table_artifact(rows, key="stages", description=f"{loaded.name}: results up to {last}")
    return record


def _stages(recipe: Recipe, run: PipelineRun, chain: Chain) -> Generator[tuple[str, StageResult]]:
    """Name and result of each stage, as it is done; the next one starts when the next is asked for."""
    from tasks.base_model import given_policy, train_base_model
    from tasks.data import prepare_data
    from tasks.evaluation import evaluate_policy
    from tasks.judges import train_judges
    from tasks.ppo import run_ppo
    from tasks.registration import register_policy
    from tasks.reward_checks import check_reward_model
    from tasks.reward_model import prepare_reward_model
    from tasks.sft_on_chosen import train_on_chosen
    from tasks.stage.preflight import announce

    data = chain(prepare_data, recipe, run)
    yield "data", data
    announce(recipe, data)
    with gpu_limit():
        trained = recipe.policy.train is not None
        policy = chain(train_base_model, recipe, run, data) if trained else given_policy(recipe, data)
        yield "base_model", policy
        reward = chain(prepare_reward_model, recipe, run, data, policy)
        yield "reward_model", reward
        checks = chain(check_reward_model, recipe, run, data, reward)
        yield "reward_checks", checks
        judges = None
        if recipe.trains_judges:
            judges = chain(train_judges, recipe, run, data, policy)
            yield "judges", judges
        ppo = chain(run_ppo, recipe, run, data, policy, reward, judges)
        yield "ppo", ppo
        chosen = None
        if recipe.trains_on_chosen:
            chosen = chain(train_on_chosen, recipe, run, data, policy)
            yield "sft_on_chosen", chosen
        evaluation = chain(evaluate_policy, recipe, run, policy, reward, ppo, data, judges, chosen)
        yield "evaluation", evaluation
        model = chain(register_policy, recipe, run, policy, reward, ppo, evaluation, checks, data, judges)
        yield "registration", model


rlhf.__signature__ = form.signature(rlhf.fn)  # type: ignore[attr-defined]

if __name__ == "__main__":  # until the next release; another process, since importing this has imported prefect
    import os
    import sys
    import warnings

    warnings.warn("python -m flows.rlhf RECIPE is now python -m flows.cli run RECIPE", DeprecationWarning, stacklevel=1)
    command = [sys.executable, "-m", "flows.cli", "run", *(sys.argv[1:] or ["embedded"])]
    os.execv(sys.executable, command)
