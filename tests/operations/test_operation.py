"""What is tried again and what is not, time limits, and MLflow runs closed by the flow's hooks."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import mlflow
import pytest
import requests
import yaml
from huggingface_hub.errors import OfflineModeIsEnabled
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import TerminationSignal

from flows.orchestration.hooks import HOOKS, close_tracking
from flows.orchestration.limits import time_limit
from rlhf_lib.errors import DataError, GateFailed, ModelError, RecipeError, TimeLimit
from tasks.stage.options import OPTIONS
from tasks.tracking.retries import is_retryable

ROOT = Path(__file__).parents[2]


def raised(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def refused(status: int) -> requests.HTTPError:
    return requests.HTTPError(response=SimpleNamespace(status_code=status))


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (requests.ConnectionError("refused"), True),
        (ConnectionResetError(), True),
        (refused(503), True),
        (refused(404), False),
        (raised(ModelError("model x can't be had"), requests.ReadTimeout()), True),
        (raised(DataError("data set x can't be had"), refused(404)), False),
        (raised(ModelError("model x can't be had"), OfflineModeIsEnabled()), False),
        (raised(mlflow.MlflowException("API request to http://m failed"), requests.ConnectionError()), True),
        (mlflow.MlflowException("no such run", error_code=5), False),
        (RecipeError("unknown key"), False),
        (raised(GateFailed("accuracy"), ConnectionError()), False),
        (ValueError("a bug"), False),
        (None, False),
    ],
)
def test_transient_errors_are_retried_and_nothing_else(error, again):
    assert is_retryable(error) is again


def test_a_task_is_tried_again_by_prefect_after_a_connection_error_and_not_after_a_bad_recipe(prefect_server):
    from prefect import flow, task

    attempts: list[str] = []

    @task(**OPTIONS | {"retry_delay_seconds": 0, "retry_jitter_factor": None})
    def flaky() -> dict[str, int]:
        attempts.append("flaky")
        if len(attempts) < 3:
            raise ConnectionError("away")
        return {"attempts": len(attempts)}

    @task(**OPTIONS | {"retry_delay_seconds": 0, "retry_jitter_factor": None})
    def wrong() -> None:
        attempts.append("wrong")
        raise RecipeError("unknown key")

    @flow
    def both() -> dict[str, int]:
        record = flaky()
        with pytest.raises(RecipeError):
            wrong()
        return record

    assert both() == {"attempts": 3}
    assert attempts == ["flaky"] * 3 + ["wrong"]


# ---------------------------------------------------------------- time limits


def test_a_run_past_its_limit_is_told_so(monkeypatch):
    def terminate(*_: object) -> None:
        raise TerminationSignal(signal=signal.SIGTERM)

    def work() -> None:
        try:
            time.sleep(60)
        except TerminationSignal as ending:
            ending.add_note("Stopped after step 31; the same command resumes at step 32")  # as PPO does
            raise

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        start = time.monotonic()
        with (
            pytest.raises(TimeLimit, match=r"the time limit of 0\.01 minutes is over\. Stopped after"),
            time_limit(0.01),
        ):
            work()
        assert time.monotonic() - start < 30
        with pytest.raises(TerminationSignal), time_limit(10):
            signal.raise_signal(signal.SIGTERM)  # somebody else's
        with time_limit(10), time_limit(None):
            pass
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_c_call_that_never_returns_ends_too():
    """It holds the interpreter's lock, so that no thread and no signal handler of Python's can run."""
    code = """
import ctypes, signal
from flows.orchestration.limits import time_limit
signal.signal(signal.SIGTERM, lambda *_: None)
with time_limit(0.01, grace=1):
    print("called", flush=True)
    while True:
        ctypes.PyDLL(None).sleep(600)
"""
    hung = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert hung.stdout == "called\n"
    assert hung.returncode == -signal.SIGKILL


# ---------------------------------------------------------------- hooks


def left_behind(flow_run_id: str) -> tuple[str, str, str]:
    """A parent with a finished and an open child, as a killed process leaves them."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tests").experiment_id
    parent = client.create_run(experiment, tags={"prefect_flow_run_id": flow_run_id}).info.run_id
    done, open_ = (client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id for _ in range(2))
    client.set_terminated(done, "FINISHED")
    return parent, done, open_


@pytest.mark.parametrize(
    ("kind", "status"),
    [(StateType.CRASHED, "FAILED"), (StateType.FAILED, "FAILED"), (StateType.CANCELLING, "KILLED")],
)
def test_hooks_close_what_was_left_open(mlflow_store, tmp_path, kind, status):
    with mlflow_store(tmp_path):
        flow_run, other = SimpleNamespace(id=uuid4()), left_behind(str(uuid4()))
        runs = left_behind(str(flow_run.id))
        close_tracking(flow=None, flow_run=flow_run, state=State(type=kind, message="the process is gone"))
        assert [mlflow.get_run(run).info.status for run in runs] == [status, "FINISHED", status]
        assert mlflow.get_run(runs[0]).data.tags["failure"] == "the process is gone"
        assert [mlflow.get_run(run).info.status for run in other] == ["RUNNING", "FINISHED", "RUNNING"]


def test_a_cancelled_run_that_its_signal_closed_as_failed_becomes_killed(mlflow_store, tmp_path):
    with mlflow_store(tmp_path):
        flow_run = SimpleNamespace(id=uuid4())
        runs = left_behind(str(flow_run.id))
        for run in (runs[0], runs[2]):
            mlflow.MlflowClient().set_terminated(run, "FAILED")
        close_tracking(flow=None, flow_run=flow_run, state=State(type=StateType.CANCELLED, message="by a person"))
        assert [mlflow.get_run(run).info.status for run in runs] == ["KILLED", "FINISHED", "KILLED"]


def test_the_flow_has_its_hooks():
    from flows.rlhf import rlhf

    for name, hooks in HOOKS.items():
        assert getattr(rlhf, f"{name}_hooks") == hooks


# ---------------------------------------------------------------- files for operators


def test_the_automations_are_prefects():
    from prefect.events.schemas.automations import AutomationCore

    for automation in yaml.safe_load((ROOT / "deploy" / "automations.yaml").read_text())["automations"]:
        AutomationCore.model_validate(automation)


def test_the_page_on_webhooks_verifies_what_mlflow_signs():
    from mlflow.webhooks.delivery import _generate_hmac_signature

    page = (ROOT / "docs" / "how-to" / "production.md").read_text()
    given: dict = {}
    exec(re.search(r'```python title="verify.py"\n(.*?)```', page, re.DOTALL)[1], given)
    body = json.dumps({"entity": "model_version_alias", "data": {"alias": "champion", "name": "größer"}})
    headers = {"X-MLflow-Delivery-Id": "a-b", "X-MLflow-Timestamp": "1700000000"}
    headers["X-MLflow-Signature"] = _generate_hmac_signature("s3cret", "a-b", "1700000000", body)
    verified = given["verified"]
    assert verified("s3cret", headers, body.encode(), now=1700000299)
    assert not verified("s3cret", headers, body.encode(), now=1700000301)  # replayed
    assert not verified("s3cret", headers, body.encode() + b" ", now=1700000000)
    assert not verified("another", headers, body.encode(), now=1700000000)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_pools_templates_use_the_variables_that_they_declare(kind):
    template = json.loads((ROOT / "deploy" / f"{kind}-pool.json").read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
