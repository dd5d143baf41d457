"""A Prefect server for the duration of one command, if none is configured.

Prefect would start one itself, but only after its imports, when a flow is called. Started earlier, on another core, it
is ready by the time this process has imported what the stages need.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
from pathlib import Path

from flows.servers import blank_databases, environment, services

_SERVE = """
import gc, os, sys, threading, time
gc.set_threshold(100_000)  # it makes a million objects that stay
parent, port = int(sys.argv[1]), int(sys.argv[2])

def end_with_parent():
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)

threading.Thread(target=end_with_parent, daemon=True).start()
import uvicorn
uvicorn.run("prefect.server.api.server:create_app", factory=True, host="127.0.0.1", port=port, log_level="error")
"""
_NAME = "Prefect's temporary server"
_server: subprocess.Popen[bytes] | None = None
_new_databases: dict[str, Path] = {}


def begin() -> None:
    """Start the server, stop it at exit, and point Prefect to it. Does nothing if one is configured, or if Prefect has
    already read its settings."""
    global _server, _new_databases
    if _server is not None or "prefect" in sys.modules:
        return
    _new_databases = blank_databases.provide()
    if environment.prefect_api() is not None:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    _server = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(os.getpid()), str(port)],
        env=os.environ | {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"},
        stdin=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C is for the run, which has something to tell the server
    )
    atexit.register(_stop, _server)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    os.environ.setdefault("PREFECT_UI_URL", "http://127.0.0.1:4200")  # where `rlhf ui` will show the run


def in_use() -> bool:
    """Whether this process uses a temporary server, which no other runs share."""
    return _server is not None


def wait() -> None:
    """Import what every run needs, and return when the server answers. Raises EnvironmentFault if it doesn't."""
    if (server := _server) is None:
        return
    _import()
    services.await_page(
        f"{os.environ['PREFECT_API_URL']}/health",
        _NAME,
        lambda: None if server.poll() is None else _NAME,
        lambda _: "its message is above",
    )
    blank_databases.keep(_new_databases)


def _import() -> None:
    import mlflow
    import torch  # noqa: F401
    from transformers import GPT2LMHeadModel  # noqa: F401 - with what every model of transformers' needs

    if os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:"):
        mlflow.MlflowClient().search_experiments()  # makes its tables, where there are none


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
