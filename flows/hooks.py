"""What a flow does when it fails, crashes or is cancelled. Prefect calls hooks in the flow's process, and where that is
gone in one of the worker's."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow


def close_tracking(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Leave no MLflow run open (Prefect goes by these parameters' names)."""
    from flows.environment import run_dir
    from tasks.closing import close_runs

    cancelled = state.is_cancelled() or state.is_cancelling()
    close_runs(str(flow_run.id), cancelled=cancelled, reason=state.message or state.name or "", root=run_dir())


HOOKS: dict[str, Any] = {
    "on_failure": [close_tracking],
    "on_crashed": [close_tracking],
    "on_cancellation": [close_tracking],
}
