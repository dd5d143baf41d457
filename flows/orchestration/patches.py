"""Every patch of Prefect's private parts. With them, a flow run that a worker started survives the worker's death and a
server restart, and is cancelled where Prefect would call it crashed.

Made for Prefect 3.8.8; tests/flows/orchestration/test_patches.py fails as soon as one isn't needed any more.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache

# passes on what comes, as long as there is someone to pass it on to, and ends with the flow's process
_RELAY = """
import os, signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
while told := os.read(0, 65536):
    try:
        while told:
            told = told[os.write(1, told):]
    except OSError:
        pass
"""


@cache
def apply() -> None:
    """Apply all patches in the process of a worker's flow run, once; do nothing elsewhere."""
    if "PREFECT__FLOW_RUN_ID" not in os.environ:
        return
    relay_output()
    retry_first_connection()
    acknowledge_cancellation()


def relay_output() -> None:
    """Send the output through a process that outlives the worker.

    It goes to the worker through a pipe. When the worker is killed, the next line that is printed would end the run
    with a broken pipe. No upstream issue found (November 2026).
    """
    relay = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _RELAY],
        stdin=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={},
        start_new_session=True,
    )
    assert relay.stdin is not None
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    for descriptor in (1, 2):
        os.dup2(relay.stdin.fileno(), descriptor)
    relay.stdin.close()
    relay.returncode = 0  # it outlives this process, and its exit status isn't needed


def retry_first_connection() -> None:
    """Have every client retry a refused connection, including its first.

    Since PrefectHQ/prefect#20276, clients retry only after they have connected once. A flow run keeps opening new
    clients, to a server that is known to exist. Upstream: PrefectHQ/prefect#20462.
    """
    from prefect.client import base

    for client in (base.PrefectHttpxAsyncClient, base.PrefectHttpxSyncClient):
        client._has_connected = property(lambda self: True, lambda self, value: None)  # type: ignore[assignment]


def acknowledge_cancellation() -> None:
    """Acknowledge a cancellation whatever handler SIGTERM has.

    Prefect acknowledges only under its own handler, and a run that doesn't acknowledge is killed and counts as crashed.
    PPO handles SIGTERM itself while it trains, and passes it on at a step boundary. No upstream issue found (November
    2026).
    """
    from prefect._internal import control_listener

    control_listener.commit_control_intent_and_ack = _acknowledge


def _acknowledge(
    commit_intent: Callable[[], None],
    clear_intent: Callable[[], None],
    send_ack: Callable[[], None],
    trigger_cancel: Callable[[], None] | None = None,
) -> bool:
    commit_intent()
    try:
        send_ack()
    except OSError:
        clear_intent()
        return False
    return True
