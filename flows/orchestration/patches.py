"""A flow run that a worker has started goes on when the worker is killed, and while Prefect's server starts again; and
cancelled in mid-PPO it is cancelled, not crashed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable

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


def endure() -> None:
    """In the process of a worker's flow run, and nowhere else: its output survives the worker, its client the server.

    The output goes to the worker through a pipe, and without its reader the next line that is printed would end the
    run. Prefect's clients wait for a server that they have reached before; one that is new gives up at once.
    """
    if "PREFECT__FLOW_RUN_ID" not in os.environ:
        return
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
    relay.returncode = 0  # it outlives this process, and nobody asks how it ended

    from prefect._internal import control_listener
    from prefect.client import base

    for client in (base.PrefectHttpxAsyncClient, base.PrefectHttpxSyncClient):
        # it has been reached by who started this run
        client._has_connected = property(lambda self: True, lambda self, value: None)  # type: ignore
    control_listener.commit_control_intent_and_ack = _acknowledge


def _acknowledge(
    commit_intent: Callable[[], None],
    clear_intent: Callable[[], None],
    send_ack: Callable[[], None],
    trigger_cancel: Callable[[], None] | None = None,
) -> bool:
    """Prefect's own, which hears of a cancellation only under Prefect's handler of SIGTERM: PPO's passes the signal on,
    once it has left a step boundary."""
    commit_intent()
    try:
        send_ack()
    except OSError:
        clear_intent()
        return False
    return True
