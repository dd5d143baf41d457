"""MLflow runs that their pipeline left behind: closed from outside, with what became of it."""

from __future__ import annotations

import mlflow
from mlflow.entities import Run

from rlhf_lib.credentials import redact

_OPEN = ("RUNNING", "SCHEDULED")


def close_runs(flow_run_id: str, *, cancelled: bool, reason: str) -> list[str]:
    """End the runs of a Prefect flow run, parent and children, that are still open: KILLED where it was cancelled, else
    FAILED, with the reason in the parent's tag `failure` unless one is there. Returns the ids of those it ended.

    A cancelled run's signal may have passed through the flow and closed them as failed: these become KILLED too.
    """
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]

    def tagged(name: str, value: str) -> list[Run]:
        return list(client.search_runs(experiments, filter_string=f"tags.`{name}` = '{value}'"))

    wrong = (*_OPEN, "FAILED") if cancelled else _OPEN
    closed = []
    for parent in tagged("prefect_flow_run_id", flow_run_id):
        for run in (*tagged("mlflow.parentRunId", parent.info.run_id), parent):
            if run.info.status in wrong:
                client.set_terminated(run.info.run_id, "KILLED" if cancelled else "FAILED")
                closed.append(run.info.run_id)
        if parent.info.status != "FINISHED" and "failure" not in parent.data.tags:
            client.set_tag(parent.info.run_id, "failure", redact(reason)[:5000])
    return closed
