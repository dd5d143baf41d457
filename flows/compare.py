"""Compare models on the same prompts and seeds: registered versions, their references, folders, hub ids.

rlhf compare models:/happy@champion models:/pessimistic@champion reference
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.orchestration.hooks import HOOKS
from flows.orchestration.limits import gpu_limit
from flows.orchestration.names import typed_name
from flows.servers.environment import check, run_dir


def run_name() -> str:
    """The flow run's name: the one that was typed, else the models'."""
    models = (
        uri.removeprefix("models:/").replace("/", " ") if uri.startswith("models:/") else PurePath(uri).name
        for uri in flow_run.parameters["models"]
    )
    return typed_name() or f"compare {', '.join(models)}"


@flow(name="compare", flow_run_name=run_name, persist_result=False, result_serializer="json", **HOOKS)
def compare(
    models: list[str], recipe: str | None = None, overrides: list[str] | None = None, prompts: int | None = None
) -> dict[str, Any]:
    """Compare models, the first with each of the others.

    Args:
        models: two or more of models:/NAME/VERSION, models:/NAME@ALIAS, a hub id, a folder, or `reference`: what the
            first registered version was trained from.
        recipe: whose prompts, generation and reward are used; null: the first registered version's own.
        overrides: settings on top of the recipe, each `section.key=value`.
        prompts: how many of its held-out prompts; null: as the recipe says.
    """
    import mlflow

    from tasks.compare import compare_models, plan_comparison
    from tasks.tracking import run_folder
    from tasks.tracking.runs import git_commit, use_experiment

    check()
    plan = plan_comparison(models, recipe, overrides, prompts)
    use_experiment(str(run_dir()))
    tags = {"recipe": plan.recipe.name, "stage": "compare", "git_commit": git_commit()}
    tags |= {"prefect_flow_run_id": flow_run.id, "prefect_flow_run_url": flow_run.ui_url}
    known = {key: str(value) for key, value in tags.items() if value is not None}
    with (
        mlflow.start_run(run_name=flow_run.name, tags=known) as run,
        run_folder.running(run_dir(), run.info.run_id),
        gpu_limit(),
    ):
        record = compare_models(plan, str(run_dir() / "work" / run.info.run_id / "compare"))
    return record | {"mlflow_run_id": run.info.run_id}
