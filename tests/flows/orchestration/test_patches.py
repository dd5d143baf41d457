"""The patches of Prefect: what each is for, with and without it. Where Prefect behaves by itself, its patch can go."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.orchestration import patches

ROOT = Path(__file__).parents[3]


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a Python of its own, where a patch can't outlive its test."""
    settings = os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_LOGGING_LEVEL": "CRITICAL"} | environment
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)


# ---------------------------------------------------------------- output that outlives its reader

TALKS = """
import os, sys, time
if sys.argv[1] == "patched":
    from flows.orchestration.patches import relay_output
    relay_output()
print("ready", flush=True)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
print("nobody reads this", flush=True)
open(sys.argv[2] + ".lived", "w").close()
"""


@pytest.mark.parametrize("patched", [True, False])
def test_a_run_outlives_the_reader_of_its_output(tmp_path, patched):
    mark = tmp_path / "reader gone"
    process = subprocess.Popen(
        [sys.executable, "-c", TALKS, "patched" if patched else "plain", str(mark)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    mark.touch()
    assert (process.wait(timeout=120) == 0) is patched
    assert Path(f"{mark}.lived").exists() is patched


# ---------------------------------------------------------------- the first connection

CONNECTS = """
import httpx
from prefect.client.base import PrefectHttpxSyncClient

attempts = []

def refuses_once(request):
    attempts.append(request)
    if len(attempts) == 1:
        raise httpx.ConnectError("refused", request=request)
    return httpx.Response(200, request=request)

with PrefectHttpxSyncClient(base_url="http://test", transport=httpx.MockTransport(refuses_once)) as client:
    print(client.get("/").status_code)
"""


@pytest.mark.parametrize("patched", [True, False])
def test_a_new_client_waits_for_a_server_that_starts_again(patched):
    patch = "from flows.orchestration.patches import retry_first_connection as patch; patch()\n" if patched else ""
    result = python(patch + CONNECTS)
    assert (result.stdout == "200\n") is patched, result.stderr
    assert ("httpx.ConnectError: refused" in result.stderr) is not patched


# ---------------------------------------------------------------- cancellation under a handler of our own


@pytest.mark.parametrize("patched", [True, False])
def test_a_cancellation_is_acknowledged_under_a_handler_of_our_own(patched):
    from prefect.utilities.engine import commit_control_intent_and_ack

    acknowledge = patches._acknowledge if patched else commit_control_intent_and_ack
    done: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        told = acknowledge(lambda: done.append("intent"), lambda: done.append("cleared"), lambda: done.append("ack"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told is patched
    assert done == (["intent", "ack"] if patched else [])


def test_an_acknowledgement_that_cannot_be_sent_clears_the_intent():
    def gone() -> None:
        raise OSError("the runner is gone")

    done: list[str] = []
    assert not patches._acknowledge(lambda: done.append("intent"), lambda: done.append("cleared"), gone)
    assert done == ["intent", "cleared"]


def test_nothing_is_patched_outside_a_workers_flow_run():
    program = """
from flows.orchestration import patches
patches.apply()
from prefect._internal import control_listener
from prefect.client.base import PrefectHttpxSyncClient
print(control_listener.commit_control_intent_and_ack.__module__, hasattr(PrefectHttpxSyncClient, "_has_connected"))
"""
    plain = python(program)
    assert plain.stdout == "prefect.utilities.engine False\n", plain.stderr
    in_a_run = python(program, PREFECT__FLOW_RUN_ID="00000000-0000-0000-0000-000000000000")
    assert in_a_run.stdout == "flows.orchestration.patches True\n", in_a_run.stderr
