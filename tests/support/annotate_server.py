"""`rlhf annotate` as a process of its own, which can be killed and started again on its port and database."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from operated import free_port, settled

from tasks.annotation.database import sqlite_url

ROOT = Path(__file__).parents[2]


class AnnotateServer:
    """The command, and what it printed in its log."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments = folder, arguments
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.database = sqlite_url(folder / "annotation.db")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "flows.cli", "annotate", *self.arguments, "--port", str(self.port)]
        if "--demo" not in self.arguments:
            command += ["--database", self.database]
        with (self.folder / "annotate.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--run-dir", str(self.folder)],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        settled(self._answers, "rlhf annotate", 120, 0.1)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        return httpx.get(f"{self.url}/health", timeout=5).is_success

    def log(self) -> str:
        return (self.folder / "annotate.log").read_text()

    def link(self, name: str) -> str:
        """The last login link that it printed for this name."""
        return re.findall(rf"^  {name} +(http\S+)$", self.log(), re.M)[-1]

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(60)


@contextmanager
def annotate_server(folder: Path, *arguments: str) -> Iterator[AnnotateServer]:
    """Started, and ended at the end."""
    server = AnnotateServer(folder, *arguments)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.end(signal.SIGKILL)
