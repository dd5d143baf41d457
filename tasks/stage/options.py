"""How Prefect runs the stages: what it retries, and what it keeps of a task's result."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from tasks.tracking.retries import is_retryable

RETRIES = 4


def _retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """What Prefect asks after each failed attempt."""
    error = state.result(raise_on_failure=False)
    return is_retryable(error if isinstance(error, BaseException) else None)


# after 10 s, 20, 40 and 80, each up to half as long again
OPTIONS: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": exponential_backoff(10),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _retry,
    # stages know their inputs by content and keep their own results (tasks/stage/run.py); Prefect keeps none of them,
    # and of a failed one its exception, as JSON: never a pickle
    "cache_policy": NO_CACHE,
    "result_serializer": "json",
}
