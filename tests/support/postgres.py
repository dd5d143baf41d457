"""A PostgreSQL of the tests' own, and on it the servers of docs/how-to/production.md: Prefect and MLflow with logins.

Debian's package is enough: apt-get install postgresql.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from operated import free_port

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[2]
FILE = re.compile(r"^```ini\n# (/\S+)\n(.*?)^```$", re.M | re.S)
WORDS = (
    "PREFECT_DB_PASSWORD",
    "MLFLOW_DB_PASSWORD",
    "OPERATOR_PASSWORD",
    "ADMIN_PASSWORD",
    "FORMS_KEY",
    "RUNS_PASSWORD",
)  # what the page leaves to choose


def programs() -> Path:
    """The folder of initdb, postgres, psql and so on; skips the test where there is none."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parts[-2]), reverse=True)
    if found := shutil.which("initdb"):
        places.append(Path(found).resolve().parent)
    whole = [p for p in places if all((p / name).exists() for name in ("initdb", "postgres", "pg_isready", "pg_dump"))]
    if not whole:
        pytest.skip("PostgreSQL's programs aren't here: apt-get install postgresql")
    return whole[0]


@dataclass
class Postgres:
    port: int
    bin: Path
    password: str

    def sql(self, text: str, database: str = "postgres") -> str:
        return self._client("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", text)

    def dump(self, database: str) -> str:
        """The whole database as SQL."""
        return self._client("pg_dump", "--inserts", database)

    def _client(self, program: str, *arguments: str) -> str:
        where = ["-h", HOST, "-p", str(self.port), "-U", "postgres"]
        result = subprocess.run(
            [self.bin / program, *where, *arguments],
            env=os.environ | {"PGPASSWORD": self.password},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """Started on a free port as an unprivileged user, which PostgreSQL insists on; its log goes to the folder."""
    server = Postgres(free_port(), programs(), secrets.token_hex(12))
    home = Path(tempfile.mkdtemp(prefix="rlhf-postgres-"))  # each start of pytest closes its own folders to other users
    data, given = home / "data", home / "password"
    data.mkdir()
    given.write_text(server.password)
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = {"user": "postgres", "group": "postgres", "extra_groups": [], "cwd": "/"}
        for place in (home, data, given):
            shutil.chown(place, "postgres", "postgres")
    initdb = [server.bin / "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", "--pwfile", given]
    subprocess.run([*initdb, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"], check=True, capture_output=True, **user)
    options = {"listen_addresses": HOST, "port": server.port, "unix_socket_directories": data, "fsync": "off"}
    words = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
    with (folder / "postgres.log").open("w") as log:
        process = subprocess.Popen([server.bin / "postgres", "-D", data, *words], stdout=log, stderr=log, **user)
    try:
        ready = [server.bin / "pg_isready", "-q", "-h", HOST, "-p", str(server.port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready).returncode:
            assert process.poll() is None, (folder / "postgres.log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL didn't start within a minute"
            time.sleep(0.2)
        yield server
    finally:
        process.send_signal(2)  # its fast shutdown
        process.wait(60)
        shutil.rmtree(home)


@dataclass
class Services:
    """Both servers. `client` is the environment of those who use them, `units` are the commands of the page's systemd
    units, `secrets` must show up nowhere."""

    prefect: str
    mlflow: str
    folder: Path
    postgres: Postgres
    client: dict[str, str]
    secrets: dict[str, str]
    units: dict[str, list[str]] = field(default_factory=dict)
    processes: list[subprocess.Popen] = field(default_factory=list)

    def logs(self) -> str:
        return "\n".join(log.read_text(errors="replace") for log in sorted(self.folder.glob("*.log")))

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("a") as log:
            self.processes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=ROOT)
            )
        return self.processes[-1]

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def services(folder: Path, server: Postgres) -> Iterator[Services]:
    """Both servers by the files and commands of docs/how-to/production.md, with places, ports and words of our own."""
    ports = {"5432": server.port, "4200": free_port(), "5000": free_port()}
    words = {name: f"{name.lower().replace('_', '')}{secrets.token_hex(8)}" for name in WORDS}
    places = {
        "/etc/ppo-rlhf/": f"{folder}/",
        "/var/lib/ppo-rlhf": f"{folder}/var",
        "/opt/ppo-rlhf/.venv/bin/": f"{Path(sys.executable).parent}/",
    }
    files = {}
    for title, text in FILE.findall((ROOT / "docs/how-to/production.md").read_text()):
        text = re.sub(rf"(?<=[:=])({'|'.join(WORDS)})(?=@|$)", lambda word: words[word[1]], text, flags=re.M)
        text = re.sub(rf"\b({'|'.join(ports)})\b", lambda port: str(ports[port[1]]), text)
        for theirs, ours in places.items():
            text = text.replace(theirs, ours)
        files[Path(title).name] = text
    for name in ("prefect.env", "mlflow.env", "mlflow-auth.ini", "runs.env"):
        (folder / name).touch(0o600)
        (folder / name).write_text(files[name])
    (folder / "var").mkdir()

    base = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RLHF_RUN_DIR"))}
    client = base | _settings(files["runs.env"]) | {"PREFECT_HOME": str(folder / "var/client")}
    made = Services(client["PREFECT_API_URL"], client["MLFLOW_TRACKING_URI"], folder, server, client, words)
    made.units = {name: _command(files[f"rlhf-{name}.service"]) for name in ("prefect", "mlflow", "worker")}
    administrator = {"PGHOST": HOST, "PGPORT": str(server.port), "PGUSER": "postgres", "PGPASSWORD": server.password}
    subprocess.run(
        [ROOT / "deploy/databases.sh"],
        env=base | administrator | words | {"PATH": f"{server.bin}:{os.environ['PATH']}"},
        check=True,
    )
    try:
        for name in ("prefect", "mlflow"):
            made.start(name, made.units[name], base | _settings(files[f"{name}.env"]))
        _answers(f"{made.mlflow}/health", made)
        _answers(f"{made.prefect}/health", made)
        user = {"MLFLOW_ADMIN_PASSWORD": words["ADMIN_PASSWORD"], "MLFLOW_PASSWORD": words["RUNS_PASSWORD"]}
        for _ in range(2):  # the second time it is there already
            command = [sys.executable, ROOT / "deploy/mlflow_user.py"]
            subprocess.run(command, env=client | user | {"MLFLOW_USER": "rlhf"}, check=True)
        yield made
    finally:
        made.stop()


def _settings(text: str) -> dict[str, str]:
    """An environment file's."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _command(unit: str) -> list[str]:
    """What a systemd unit starts."""
    return shlex.split(re.search(r"^ExecStart=((?:.*\\\n)*.*)$", unit, re.M)[1].replace("\\\n", " "))


def _answers(page: str, made: Services, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(page, timeout=10).close()
            return
        except OSError:
            time.sleep(0.5)
        ended = [process.args for process in made.processes if process.poll() is not None]
        assert not ended, f"{ended}\n{made.logs()[-5000:]}"
        assert time.monotonic() < deadline, f"no answer from {page}\n{made.logs()[-5000:]}"
