"""Servers that can't be started leave nothing running, and nothing half started. Small stand-ins run in the servers'
place; tests/operations/ has the real ones."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from operated import free_port

from flows import cli
from flows.servers import deployments, processes, services
from flows.servers.services import Service
from rlhf_lib.errors import EnvironmentFault

ROOT = Path(__file__).parents[3]
ANSWERS = """
import http.server, sys
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.BaseHTTPRequestHandler).serve_forever()
"""
# a server that leaves the work to a child, as MLflow's does
WITH_CHILD = (
    f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {ANSWERS!r}, sys.argv[1], sys.argv[2]]).wait()"
)
DIES = "import sys; sys.exit('the database is from another version')"
LEAVES_A_CHILD = WITH_CHILD.replace(".wait()", "; sys.exit('the database is from another version')")
NO_STORE = {"MLFLOW_BACKEND_STORE_URI": ""}
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run folder of its own, and a look afterwards at what still runs in its name."""
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_HOME"):
        monkeypatch.setenv(name, os.environ[name])
    monkeypatch.setenv("RLHF_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", "")  # up sets it: put back afterwards
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.chdir(ROOT)
    yield tmp_path
    assert not left(tmp_path)
    assert not list(tmp_path.glob("services/*.json"))


def left(folder: Path) -> list[psutil.Process]:
    """Processes of stand-ins, which have the folder as their last argument."""
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[-1] == str(folder)]


def stand_ins(monkeypatch: pytest.MonkeyPatch, folder: Path, prefect: str, mlflow: str) -> tuple[int, int]:
    """Have these programs start as the servers; their ports."""
    ports = free_port(), free_port()

    def servers(*wanted: int) -> tuple[Service, ...]:
        named = zip(("prefect", "mlflow"), (prefect, mlflow), wanted, strict=True)
        return tuple(
            Service(name, [sys.executable, "-c", code, str(port), str(folder)], NO_STORE, port, "health")
            for name, code, port in named
        )

    monkeypatch.setattr(services, "servers", servers)
    monkeypatch.setattr(services, "_runs_page", lambda _store, server: server)
    return ports


@pytest.mark.parametrize("start", [services.up, services.ui])
@pytest.mark.parametrize("taken", [0, 1])
def test_a_taken_port_is_found_before_anything_starts(start, taken, folder):
    ports = [free_port(), free_port()]
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", ports[taken]))
        holder.listen()
        with pytest.raises(EnvironmentFault) as refusal:
            start(*ports)
    message = str(refusal.value)
    assert f"port {ports[taken]} of 127.0.0.1 is taken by process {os.getpid()} (" in message
    name = ("prefect", "mlflow")[taken]
    assert f"such as --{name}-port" in message
    assert str(ports[1 - taken]) not in message
    assert not (folder / "services").exists()


def test_both_servers_on_one_port_are_refused():
    port = free_port()
    with pytest.raises(EnvironmentFault, match=f"two servers can't use port {port}"):
        services.up(port, port)


@pytest.mark.parametrize("start", [services.up, services.ui])
@pytest.mark.parametrize("dying", [DIES, LEAVES_A_CHILD], ids=["alone", "leaves a child"])
def test_a_server_that_dies_takes_the_other_with_it(start, dying, folder, monkeypatch):
    ports = stand_ins(monkeypatch, folder, WITH_CHILD, dying)
    with pytest.raises(EnvironmentFault, match="mlflow exited") as failure:
        start(*ports)
    if start is services.up and dying is DIES:
        assert "the database is from another version (its log is" in str(failure.value)


@pytest.mark.parametrize("start", [services.up, services.ui])
def test_a_server_that_never_answers_is_given_up(start, folder, monkeypatch):
    ports = stand_ins(monkeypatch, folder, WITH_CHILD, STUBBORN)
    monkeypatch.setattr(services, "PATIENCE", 0.5)
    monkeypatch.setattr(processes, "GRACE", 0.5)
    with pytest.raises(EnvironmentFault, match="doesn't answer"):
        start(*ports)


def test_a_failed_deployment_stops_the_servers_and_a_second_up_only_what_it_started(folder, monkeypatch, capsys):
    def fail() -> None:
        raise EnvironmentFault("prefect deploy --all failed")

    ports = stand_ins(monkeypatch, folder, ANSWERS, ANSWERS)
    monkeypatch.setattr(services.environment, "check", lambda: None)
    monkeypatch.setattr(deployments, "deploy", fail)
    first = Service("prefect", [sys.executable, "-c", ANSWERS, str(ports[0]), str(folder)], {}, ports[0], "health")
    (folder / "services").mkdir()
    services._start(first, [])
    with pytest.raises(EnvironmentFault, match="prefect deploy --all failed"):
        services.up(*ports)
    assert "prefect: already running" in capsys.readouterr().out
    (running,) = left(folder)
    assert running.cmdline()[-2] == str(ports[0])
    services.down()


def test_a_worker_that_dies_stops_the_servers(folder, monkeypatch):
    ports = stand_ins(monkeypatch, folder, ANSWERS, ANSWERS)
    monkeypatch.setattr(services.environment, "check", lambda: None)
    monkeypatch.setattr(deployments, "deploy", lambda: None)
    monkeypatch.setattr(deployments, "workers", lambda: {"an earlier one"})
    monkeypatch.setattr(services, "_worker", lambda: Service("worker", [sys.executable, "-c", DIES], {}))
    with pytest.raises(EnvironmentFault, match="worker exited: the database is from another version"):
        services.up(*ports)


@pytest.mark.parametrize(
    ("command", "number"), [("up", signal.SIGINT), ("up", signal.SIGHUP), ("ui", signal.SIGINT), ("ui", signal.SIGTERM)]
)
def test_a_signal_while_the_servers_start_stops_them(command, number, folder):
    """`up` waits for a server that never answers."""
    code = f"""
        import sys
        from flows.servers import processes, services
        from flows.servers.services import Service
        from flows import cli
        def servers(*ports):
            processes.GRACE = 0.5
            codes = ({WITH_CHILD!r}, {STUBBORN!r})
            return tuple(Service(name, [sys.executable, "-c", code, str(port), {str(folder)!r}], {{}}, port, "health")
                         for name, code, port in zip(("prefect", "mlflow"), codes, ports))
        services.servers = servers
        sys.exit(cli.main(["{command}", "--prefect-port", "{free_port()}", "--mlflow-port", "{free_port()}"]))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while len(left(folder)) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    if command == "up":
        assert process.returncode == 130
        assert b"everything that it had started is stopped" in said
    else:
        assert process.returncode == 0


def test_the_command_says_it_in_one_line(folder, capsys):
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert cli.main(["up", "--prefect-port", str(free_port()), "--mlflow-port", str(port)]) == 2
    assert capsys.readouterr().err.startswith(f"rlhf: error: port {port} of 127.0.0.1 is taken by process")


def test_prefects_records_are_kept_as_long_as_the_settings_say(folder, monkeypatch):
    from datetime import timedelta

    from prefect.settings.models.server.services import ServerServicesDBVacuumSettings

    assert "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED" not in services.servers(1, 2)[0].environment
    (folder / "settings.yaml").write_text("retention: {prefect: {days: 30}}\n")
    for name, value in services.servers(1, 2)[0].environment.items():
        monkeypatch.setenv(name, value)
    settings = ServerServicesDBVacuumSettings()
    assert settings.retention_period == timedelta(days=30)
    assert settings.enabled_vacuum_types == {"events", "flow_runs", "orphans"}
    monkeypatch.setenv("PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD", "86400")  # whoever sets it decides
    assert services.servers(1, 2)[0].environment["PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"] == "86400"
