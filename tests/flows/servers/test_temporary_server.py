"""The temporary server ends with its command, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
COMMAND = """
import os, signal, sys
from flows.cli.configure import configure
configure()
from flows.servers import temporary_server
temporary_server.begin()
print(temporary_server._server.pid, flush=True)
{}
"""


@pytest.mark.parametrize(
    "end",
    [
        "raise RuntimeError('a bug')",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGINT)",
    ],
)
def test_nothing_stays(end, tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    command = [sys.executable, "-c", COMMAND.format(end)]
    environment = kept | {"RLHF_RUN_DIR": str(tmp_path)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    try:
        server = psutil.Process(int(ended.stdout))
    except psutil.NoSuchProcess:
        return
    server.wait(60)
