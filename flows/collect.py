"""Sample responses to a recipe's prompts for people to rank.

rlhf collect RECIPE --out tasks.jsonl
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.orchestration.hooks import HOOKS
from flows.orchestration.limits import gpu_limit
from flows.orchestration.names import describe, typed_name
from flows.servers.environment import check, run_dir
from rlhf_lib.errors import DataError, EnvironmentFault
from rlhf_lib.recipe import load_recipe


def run_name() -> str:
    """The flow run's name: the one that was typed, else the recipe and what is overridden."""
    given = flow_run.parameters
    return typed_name() or f"collect {describe(given['recipe'], given.get('overrides') or [])}"


@flow(name="collect", flow_run_name=run_name, persist_result=False, result_serializer="json", **HOOKS)
def collect(
    recipe: str,
    out: str,
    overrides: list[str] | None = None,
    policy: str | None = None,
    responses: int = 4,
    prompts: int = 100,
    criterion: str = "helpful",
    instructions: str | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Write a file of tasks for annotators, and a form for spreadsheets beside it.

    Args:
        recipe: shipped recipe or YAML file: its data.prompts, generation and compute are used.
        out: the tasks' file, .jsonl.
        overrides: settings on top of the recipe, each `section.key=value`.
        policy: hub id, folder or models:/NAME@champion; null: the recipe's policy.model, or where that is still to be
            trained its champion.
        responses: sampled for each prompt.
        prompts: how many of the recipe's training prompts.
        criterion: what the annotators judge.
        instructions: for the annotators; null: the usual ones.
        seed: another round's other prompts and samples; null: the recipe's.
    """
    from pathlib import Path

    import mlflow

    from tasks.collect import collect_responses
    from tasks.tracking import run_folder
    from tasks.tracking.runs import git_commit, use_experiment

    loaded = load_recipe(recipe, overrides)
    if Path(out).suffix != ".jsonl" or not Path(out).absolute().parent.is_dir():
        raise EnvironmentFault(f"{out}: must be a .jsonl file in an existing folder")
    if responses < 2 or prompts < 1:
        raise DataError(
            f"{responses} responses to {prompts} prompts: there is nothing to rank. Set --responses to 2 or more and "
            "--prompts to 1 or more"
        )
    check()
    if policy is None:
        trained = loaded.policy.train is not None or loaded.policy.model is None
        policy = f"models:/{loaded.registration.name or loaded.name}@champion" if trained else loaded.policy.model
    use_experiment(str(run_dir()))
    tags = {"recipe": loaded.name, "stage": "collect", "criterion": criterion, "git_commit": git_commit() or ""}
    tags["prefect_flow_run_id"] = str(flow_run.id)
    with (
        mlflow.start_run(run_name=flow_run.name, tags=tags) as run,
        run_folder.running(run_dir(), run.info.run_id),
        gpu_limit(),
    ):
        record = collect_responses(
            loaded,
            str(policy),
            out,
            responses=responses,
            prompts=prompts,
            criterion=criterion,
            instructions=instructions,
            seed=loaded.seed if seed is None else seed,
        )
    return record | {"mlflow_run_id": run.info.run_id}
