"""MLflow runs that their pipeline left behind: closed from outside, with what became of it."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from rlhf_lib.credentials import redact
from tasks.tracking import run_folder

_OPEN = ("RUNNING", "SCHEDULED")


def close_runs(flow_run_id: str, *, cancelled: bool, reason: str, root: Path | None = None) -> list[str]:
    """End the runs of a Prefect flow run, parent and children, that are still open: KILLED where it was cancelled, else
    FAILED, with the reason in the parent's tag `failure` unless one is there. Returns the ids of those it ended.

    A cancelled run's signal may have passed through the flow and closed them as failed: these become KILLED too. One
    that, in the run folder `root`, runs again meanwhile is left alone.
    """
    closed = []
    for parent in tagged("prefect_flow_run_id", flow_run_id):
        if root is None or not run_folder.is_running(root, parent.info.run_id):
            closed += close_tree(parent, cancelled=cancelled, reason=reason)
    return closed


def close_abandoned(root: Path) -> None:
    """Close what pipelines left open whose process is gone, and remove their unfinished stages."""
    for parent in run_folder.abandoned(root):
        try:
            run = mlflow.get_run(parent)
        except MlflowException:
            continue  # another store's
        if run.info.status in _OPEN:
            close_tree(run, cancelled=False, reason="its process was gone before it ended")


def close_tree(parent: Run, *, cancelled: bool, reason: str) -> list[str]:
    """End a parent and its children, where they are open."""
    client = mlflow.MlflowClient()
    wrong = (*_OPEN, "FAILED") if cancelled else _OPEN
    closed = []
    for run in (*tagged("mlflow.parentRunId", parent.info.run_id), parent):
        if run.info.status in wrong:
            client.set_terminated(run.info.run_id, "KILLED" if cancelled else "FAILED")
            closed.append(run.info.run_id)
    if parent.info.status != "FINISHED" and "failure" not in parent.data.tags:
        client.set_tag(parent.info.run_id, "failure", redact(reason)[:5000])
    return closed


def tagged(name: str, value: str) -> list[Run]:
    """The runs with that tag, in all experiments."""
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, filter_string=f"tags.`{name}` = '{value}'"))
