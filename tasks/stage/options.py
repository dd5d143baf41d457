"""How Prefect runs the stages: what is tried again, what waits for the GPU, and what is kept of a task's result."""

from __future__ import annotations

import os
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from rlhf_lib.errors import DataError, ModelError, RLHFError

RETRIES = 4
_PASSING = (ConnectionError, TimeoutError)
_PASSING_NAMES = {
    "ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "ChunkedEncodingError",  # requests
    "ConnectError", "ReadError", "RemoteProtocolError", "PoolTimeout", "WriteError",  # httpx, that the hub uses
    "IncompleteRead", "ProtocolError", "NewConnectionError", "MaxRetryError",  # urllib3
}  # fmt: skip
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}


def can_pass(error: BaseException | None) -> bool:
    """Whether the same call may succeed a little later: the network, the hub or the tracking server was away.

    What the user has to mend can't; but a data set or model that wasn't to be had is judged by what it was raised from.
    """
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    if any("OfflineMode" in f"{type(link).__name__} {link}" for link in chain):  # by HF_HUB_OFFLINE: not a fault
        return False
    if any(isinstance(link, RLHFError) and not isinstance(link, (DataError, ModelError)) for link in chain):
        return False
    return any(_passing(link) for link in chain)


def _passing(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)  # an answer of requests or httpx
    if status is None and hasattr(error, "get_http_status_code"):  # MlflowException
        status = error.get_http_status_code() if "API request to" in str(error) else None
    if status is not None:
        return status in _PASSING_STATUS
    return isinstance(error, _PASSING) or any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__)


def _retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's question after each failed attempt."""
    error = state.result(raise_on_failure=False)
    return can_pass(error if isinstance(error, BaseException) else None)


# 10 s, 20, 40, 80, each up to a half longer
LIGHT: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": exponential_backoff(10),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _retry,
    # stages know their inputs by content and keep their own results (tasks/stage/run.py); Prefect keeps none of them,
    # and of a failed one its exception, as JSON: never a pickle
    "cache_policy": NO_CACHE,
    "result_serializer": "json",
}
# under the tag's limit, one such task at a time on all machines; a temporary server has none, and asking takes seconds
HEAVY: dict[str, Any] = LIGHT | {"tags": [] if "RLHF_TEMPORARY_SERVER" in os.environ else ["gpu"]}
