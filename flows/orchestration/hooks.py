"""Hooks for flows that fail, crash or are cancelled. Prefect calls them in the flow's process, or in the worker's if
that is gone."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow


def close_tracking(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Leave no MLflow run open. Prefect requires these parameter names."""
    from flows.servers.environment import run_dir
    from tasks.tracking.runs import close_runs

    cancelled = state.is_cancelled() or state.is_cancelling()
    close_runs(str(flow_run.id), cancelled=cancelled, reason=state.message or state.name or "", root=run_dir())


def close_tasks(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End the task runs of a killed process, which count as running and hold their slot of the tag's limit; leave those
    of a newer attempt alone."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.states import Cancelled, Crashed

    cancelled = state.is_cancelled() or state.is_cancelling()
    ended = Cancelled if cancelled else Crashed
    with get_client(sync_client=True) as client:
        for task in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))):
            unfinished = task.state is not None and not task.state.is_final()
            if unfinished and (cancelled or task.state.timestamp <= state.timestamp):  # type: ignore[union-attr]
                client.set_task_run_state(task.id, ended(message="its flow run has ended"), force=True)


HOOKS: dict[str, Any] = {
    "on_failure": [close_tracking],
    "on_crashed": [close_tracking, close_tasks],
    "on_cancellation": [close_tracking, close_tasks],
}
