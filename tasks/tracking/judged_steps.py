"""Every step of PPO that judges were asked about, as a model in MLflow's list of models, which ranks them.

    mlflow.search_logged_models([experiment], order_by=[{"field_name": "metrics.eval/judge/NAME", "ascending": False}])

An entry has no weights of its own: its params say where they lie, if they were kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import mlflow
from mlflow.entities import Metric
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

MODEL_TYPE = "ppo-step"
_FORBIDDEN = re.compile(r"[/:.%\"']")  # in a logged model's name


def log_judged_steps(
    run_id: str,
    recipe: str,
    evaluations: Sequence[Mapping[str, float]],
    weights: Mapping[int, Mapping[str, str]],
    dataset: tuple[str, str] | None,
) -> None:
    """An entry for each of the `evaluations` after step 0, its metrics, which the run has by step, linked to it and to
    the `dataset` (name, digest). `weights`: by step, the params that say where they lie. Called again, it adds what
    is missing."""
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    judged = {int(found["step"]): found for found in evaluations if found["step"] > 0}
    names = sorted({name for found in judged.values() for name in found} - {"step"})
    # by their times there MLflow knows the run's own points again, and doesn't draw them twice
    times = {(name, point.step): point.timestamp for name in names for point in client.get_metric_history(run_id, name)}
    experiment = run.info.experiment_id
    known = {model.params["step"]: model for model in _entries(experiment, run_id)}
    parent = run.data.tags.get("mlflow.parentRunId", run_id)
    name, digest = dataset or (None, None)
    for step, found in judged.items():
        model = known.get(str(step)) or mlflow.create_external_model(
            name=f"{_FORBIDDEN.sub('-', recipe)}-step-{step}",
            source_run_id=run_id,
            params={"step": str(step), "recipe": recipe, **weights.get(step, {"weights": "not kept"})},
            tags={"parent_run_id": parent},
            model_type=MODEL_TYPE,
            experiment_id=experiment,
        )
        if not model.metrics:
            points = [
                Metric(key, found[key], times[key, step], step, model.model_id, name, digest)
                for key in names
                if key in found
            ]
            client.log_batch(run_id, points)


def _entries(experiment: str, run_id: str) -> list[mlflow.entities.LoggedModel]:
    found = mlflow.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'", output_format="list")
    return [model for model in found if model.model_type == MODEL_TYPE]


def dataset_of(run_id: str, role: str) -> tuple[str, str] | None:
    """Name and digest of the run's data set in that role, say prompts/test; None where it has none."""
    inputs = mlflow.get_run(run_id).inputs
    for given in inputs.dataset_inputs if inputs else ():
        roles = next((tag.value for tag in given.tags if tag.key == MLFLOW_DATASET_CONTEXT), "")
        if role in roles.split(", "):
            return given.dataset.name, given.dataset.digest
    return None
