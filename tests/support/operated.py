"""What the tests of the operated project share: the servers and the worker that `rlhf up` leaves running, asked by
HTTP, and a real browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE: Any = {"width": 1280, "height": 900}
PATIENCE = 600.0  # seconds for a run of a minute, on a machine that has other things to do
NAMES = ("prefect", "mlflow", "annotate", "worker")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settled(condition: Callable[[], Any], what: str, patience: float = PATIENCE, every: float = 0.5) -> Any:
    """The condition's first true value; while a server doesn't answer there is none."""
    until = time.monotonic() + patience
    error = None
    while time.monotonic() < until:
        try:
            if found := condition():
                return found
        except httpx.HTTPError as away:
            error = away
        time.sleep(every)
    raise AssertionError(f"{what}: not within {patience:.0f} s") from error


@pytest.fixture(scope="module", name="operated")
def services_left_running(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """What `rlhf up` leaves running, on ports and in a run folder of its own."""
    folder, ports = tmp_path_factory.mktemp("operated"), (free_port(), free_port(), free_port())
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RLHF_RUN"))}
    rlhf = [sys.executable, "-m", "flows.cli"]
    up = [*rlhf, "up", "--run-dir", str(folder), "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    up += ["--annotate-port", str(ports[2])]
    down = [*rlhf, "down", "--run-dir", str(folder)]
    run = {"cwd": ROOT, "env": kept, "capture_output": True, "text": True, "timeout": 900}
    try:
        first = subprocess.run(up, **run)
        assert first.returncode == 0, first.stdout + first.stderr
        again = subprocess.run(up, **run)
        yield SimpleNamespace(
            folder=folder,
            prefect=f"http://127.0.0.1:{ports[0]}",
            mlflow=f"http://127.0.0.1:{ports[1]}",
            annotate=f"http://127.0.0.1:{ports[2]}",
            said=(first.stdout, again.stdout),
            processes={name: json.loads((folder / "services" / f"{name}.json").read_text())["pid"] for name in NAMES},
            down=lambda: subprocess.run(down, **run),
        )
    finally:
        subprocess.run(down, **run)


@pytest.fixture(scope="module", name="browser")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver, tempfile.TemporaryDirectory() as profile:
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=FLAGS, viewport=SIZE
        )
        context.set_default_timeout(1000 * PATIENCE / 3)
        yield context
        context.close()


def keep(page: Any, name: str) -> None:
    """A picture for the documentation, where one is asked for."""
    if folder := os.environ.get("RLHF_SCREENSHOTS"):
        page.wait_for_timeout(2000)
        page.screenshot(path=Path(folder) / f"{name}.png")


def api(operated: SimpleNamespace, method: str, path: str, **body: Any) -> Any:
    def answered() -> Any:
        answer = httpx.request(method, f"{operated.prefect}/api/{path}", json=body or None, timeout=120)
        assert answer.is_success or answer.status_code == 503, answer.text  # 503: "later", as Prefect's client takes it
        return answer.is_success and [answer.json()]

    return settled(answered, path, 60)[0]


def prefect(operated: SimpleNamespace, *words: str) -> None:
    """A command of Prefect's, in a shell that was told of the server."""
    address = {"PREFECT_API_URL": f"{operated.prefect}/api"}
    command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | address, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
