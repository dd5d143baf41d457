"""The servers that show and run things, on this machine: in the foreground (`rlhf ui`), or left running with a worker
and everything deployed (`rlhf up`, `rlhf down`).

What is left running is known by a file each in RUN_DIR/services: process id and start time, so that neither a second
`up` starts it twice nor `down` ends a process of another's that has the id by now.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flows.servers import blank_databases, deployments, environment, ports, processes
from flows.servers.ports import HOST
from rlhf_lib.errors import EnvironmentFault

PATIENCE = 300.0  # seconds for a server to answer: a busy machine takes minutes to create the tables


class Service(NamedTuple):
    """A process to start: its command, its environment, and the page that answers once it is up (None: none does)."""

    name: str
    command: list[str]
    environment: dict[str, str]
    port: int = 0
    health: str | None = None


def servers(prefect_port: int, mlflow_port: int) -> tuple[Service, Service]:
    """The Prefect server, and the MLflow server on the store that MLFLOW_TRACKING_URI names."""
    from tasks.retention.settings import load

    start, folder, store = [sys.executable, "-m"], environment.run_dir(), os.environ["MLFLOW_TRACKING_URI"]
    records = load(folder).retention.prefect
    vacuum = {
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(int(86400 * records.days)) if records else "",
    }
    # no proxy for artifacts: they are plain files in the run folder, for runs with and without this server
    files = ["--no-serve-artifacts", "--default-artifact-root", (folder / "artifacts").as_uri()]
    prefect = Service(
        "prefect",
        [*start, "prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)],
        # without its own address in the settings, Prefect's page looks for the API at the default port
        {
            "PREFECT_UI_API_URL": f"http://{HOST}:{prefect_port}/api",
            "PREFECT_UI_URL": f"http://{HOST}:{prefect_port}",  # for the links in notifications
            "PREFECT_HOME": os.environ.get("PREFECT_HOME", f"{folder}/prefect"),
            # SQLite has one writer at a time, and on a busy machine the others wait longer than the usual 10 s
            "PREFECT_SERVER_DATABASE_TIMEOUT": os.environ.get("PREFECT_SERVER_DATABASE_TIMEOUT", "60"),
            # who holds which slot, kept on disk: from memory a server that starts again knows of none, and the slots
            # are never given back
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            **({name: os.environ.get(name, value) for name, value in vacuum.items()} if records else {}),
        },
        prefect_port,
        "api/health",
    )
    mlflow = Service(
        "mlflow",
        [*start, "mlflow", "server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1", *files],
        {
            # a database's password must not stand on a command line, which all users of the machine can read
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db" if store.startswith("http") else store,
            # seven processes more, for judges and the like
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": os.environ.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"),
        },
        mlflow_port,
        "health",
    )
    return prefect, mlflow


def ui(prefect_port: int, mlflow_port: int) -> None:
    """Run both servers until Ctrl-C or SIGTERM.

    Raises EnvironmentFault for a port in use, with nothing started, or if a server exits, with the other stopped.
    """
    environment.check()
    pair = servers(prefect_port, mlflow_port)
    _check_ports(pair)
    blank_databases.provide()
    running: list[subprocess.Popen[bytes]] = []

    def ended() -> str | None:
        return next((s.name for s, process in zip(pair, running, strict=False) if process.poll() is not None), None)

    with contextlib.suppress(KeyboardInterrupt), processes.interruptible():
        try:
            for service in pair:
                with processes.undisturbed():
                    running.append(_spawn(service, process_group=0))  # Ctrl-C is for this process
            for service in pair:
                page = f"http://{HOST}:{service.port}/{service.health}"
                await_page(page, service.name, ended, lambda _: "its message is above")
            if ended() is None:
                runs = _runs_page(pair[1].environment["MLFLOW_BACKEND_STORE_URI"], f"http://{HOST}:{mlflow_port}")
                print(f"{_pages(f'http://{HOST}:{prefect_port}', runs)}\nCtrl-C stops both", flush=True)
            while (name := ended()) is None:
                time.sleep(0.5)
            raise EnvironmentFault(f"{name} exited, so the other server was stopped too: its message is above")
        finally:
            with processes.undisturbed():
                for process in running:
                    processes.end(process)


def annotate(port: int) -> Service:
    """The pages where people rank answers. Its log must hold no login links: whoever reads it could use them."""
    command = [sys.executable, "-m", "flows.cli", "annotate", "--port", str(port), "--no-links"]
    return Service("annotate", command, {}, port, "health")


def up(prefect_port: int, mlflow_port: int, annotate_port: int | None = None) -> None:
    """Start the servers, work pool, concurrency limit, deployments and a worker that aren't there yet; with a port for
    them, the pages for ranking too.

    A server elsewhere, named by PREFECT_API_URL or MLFLOW_TRACKING_URI, is used instead of starting one. Raises
    EnvironmentFault naming the port, the log file or the missing prefect.yaml. Whatever ends it early, an error or a
    signal, it stops what it had started.
    """
    deployments.check_description()
    prefect, mlflow = servers(prefect_port, mlflow_port)
    wanted: list[Service] = []
    ours, store = f"http://{HOST}:{prefect_port}/api", os.environ["MLFLOW_TRACKING_URI"]
    if environment.prefect_api() in (None, ours):
        wanted.append(prefect)
    if not store.startswith("http") or store == f"http://{HOST}:{mlflow_port}":
        wanted.append(mlflow)
    if annotate_port is not None:
        wanted.append(annotate(annotate_port))
    _check_ports([service for service in wanted if not _runs_already(service)])
    (environment.run_dir() / "services").mkdir(parents=True, exist_ok=True)
    new_databases = blank_databases.provide()
    started: list[str] = []
    with processes.interruptible():
        try:
            for service in wanted:
                _start(service, started)
            _await(wanted)
            if prefect in wanted:
                os.environ["PREFECT_API_URL"] = ours
            if mlflow in wanted:
                os.environ["MLFLOW_TRACKING_URI"] = f"http://{HOST}:{mlflow_port}"
            blank_databases.keep(new_databases)
            environment.check()
            os.environ["RLHF_RUN_DIR"] = str(environment.run_dir())  # flow runs have working directories of their own
            deployments.deploy()
            before = deployments.workers()
            _start(_worker(), started)
            if "worker" in started:
                _await_worker(before)
        except BaseException:
            with processes.undisturbed():
                _stop(reversed(started))
            raise
    api, tracking = os.environ.get("PREFECT_API_URL") or environment.prefect_api(), os.environ["MLFLOW_TRACKING_URI"]
    print(_pages(str(api).removesuffix("/api"), _runs_page(tracking, tracking)))
    if annotate_port is not None:
        at = f"http://{HOST}:{annotate_port}"
        print(f"Annotate {at}  (a login: rlhf annotators reset owner{'' if annotate_port == 4400 else f' --url {at}'})")
    print(f"for other commands in this shell: export PREFECT_API_URL={api} MLFLOW_TRACKING_URI={tracking}")


def down() -> None:
    """Stop what `up` started, including the worker's flow runs; PPO saves its last completed step."""
    _stop(("worker", "annotate", "mlflow", "prefect"))


def _stop(names: Iterable[str]) -> None:
    for name in names:
        if (process := _running(name)) is not None:
            processes.end(process)
        else:
            _end_orphans(name)
        _file(name).unlink(missing_ok=True)
        print(f"{name}: {'stopped' if process else 'was not running'}", flush=True)


def _pages(prefect: str, runs: str) -> str:
    return f"Prefect  {prefect}/runs\nMLflow   {runs}"


def _runs_page(store: str, server: str) -> str:
    """MLflow's page of all runs, in the view that is stored with their experiment; made where there is none yet."""
    import mlflow
    from mlflow.exceptions import MlflowException

    from tasks.tracking.runs import runs_link, use_experiment

    mlflow.set_tracking_uri(store)
    try:
        use_experiment(str(environment.run_dir()))
        return runs_link(server)
    except MlflowException:  # one who may only read
        return server


def _runs_already(service: Service) -> bool:
    """Whether `up` started it before. Raises EnvironmentFault if that was on another port."""
    port = _recorded_port(service.name)
    if port is None:
        _end_orphans(service.name)
        return False
    if port != service.port:
        raise EnvironmentFault(
            f"{service.name} runs on port {port} already: run rlhf down first, or choose that port by "
            f"--{service.name}-port"
        )
    return True


def _check_ports(services: Sequence[Service]) -> None:
    """Raise EnvironmentFault if one of the ports is taken, naming who has it and a free one."""
    wanted = {service.port for service in services}
    if len(wanted) < len(services):
        twice = next(port for port in wanted if sum(service.port == port for service in services) > 1)
        raise EnvironmentFault(f"two servers can't use port {twice}: give one of them another by --NAME-port")
    faults = []
    for name, port in ((service.name, service.port) for service in services if not ports.is_free(service.port)):
        if _recorded_port(name) == port:
            faults.append(f"rlhf up runs {name} on http://{HOST}:{port} already: open that, or run rlhf down first")
        else:
            free = ports.next_free(port, wanted)
            faults.append(
                f"port {port} of {HOST} is taken{ports.holder(port)}: stop that, or choose another port, such as "
                f"--{name}-port {free}"
            )
    if faults:
        raise EnvironmentFault("; ".join(faults))


def _recorded_port(name: str) -> int | None:
    """The port of the service that `up` left running; None if it isn't running."""
    return json.loads(_file(name).read_text())["port"] if _running(name) is not None else None


def _spawn(service: Service, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(service.command, env=os.environ | service.environment, **options)


def _start(service: Service, started: list[str]) -> None:
    """Leave the service running, unless it is already, and add its name to `started`."""
    import psutil

    if _runs_already(service):
        print(f"{service.name}: already running")
        return
    log = _file(service.name).with_suffix(".log")
    with open(log, "ab") as output, processes.undisturbed():
        process = _spawn(
            service,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in this terminal is none of its business
        )
        record = {"pid": process.pid, "started": psutil.Process(process.pid).create_time(), "port": service.port}
        _file(service.name).write_text(json.dumps(record))
        started.append(service.name)
    print(f"{service.name}: started, process {process.pid}, log {log}", flush=True)


def _await(services: Sequence[Service]) -> None:
    """Wait until all of them answer. Raises EnvironmentFault as soon as one has ended."""

    def ended() -> str | None:
        return next((service.name for service in services if _running(service.name) is None), None)

    for service in services:
        await_page(f"http://{HOST}:{service.port}/{service.health}", service.name, ended, _hint)
    if (gone := ended()) is not None:  # what answered was its child
        raise EnvironmentFault(f"{gone} exited: {_hint(gone)}")


def _worker() -> Service:
    start = [sys.executable, "-m", "prefect", "worker", "start", "--pool", deployments.POOL]
    return Service("worker", [*start, "--type", "process", "--install-policy", "never"], {})


def _await_worker(before: set[str]) -> None:
    """Wait until Prefect knows a worker that it didn't know before. Raises EnvironmentFault if ours has ended."""
    until = time.monotonic() + PATIENCE
    while not deployments.workers() - before:
        if _running("worker") is None:
            raise EnvironmentFault(f"worker exited: {_hint('worker')}")
        if time.monotonic() > until:
            raise EnvironmentFault(f"the worker hasn't reported to Prefect for {PATIENCE:.0f} s: {_hint('worker')}")
        time.sleep(0.5)


def _hint(name: str) -> str:
    """Where a service's messages are, with the last of them."""
    log = _file(name).with_suffix(".log")
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"{last[:300]} (its log is {log})" if last else f"see {log}"


def await_page(page: str, name: str, ended: Callable[[], str | None], hint: Callable[[str], str]) -> None:
    """Return when the server answers, even if it only asks for a login.

    `ended` names a server whose process has ended, this one or another that is needed. Raises EnvironmentFault with the
    hint for it, or after PATIENCE seconds.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(page, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            pass
        if (gone := ended()) is not None:
            raise EnvironmentFault(f"{gone} exited: {hint(gone)}")
        if time.monotonic() > until:
            raise EnvironmentFault(f"{name} doesn't answer on {page} after {PATIENCE:.0f} s: {hint(name)}")
        time.sleep(0.1)


def _running(name: str) -> Any:
    """The psutil.Process that `up` started under this name; None if it is gone."""
    import psutil

    try:
        record = json.loads(_file(name).read_text())
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["started"]) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, KeyError, psutil.Error):
        return None


def _end_orphans(name: str) -> None:
    """Kill the children of a service that has ended: they would keep its port. They are in the session that it led."""
    import psutil

    try:
        record = json.loads(_file(name).read_text())
    except (OSError, ValueError):
        return
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == record["pid"] and process.create_time() >= record["started"] - 1:
                process.kill()
                process.wait(10)


def _file(name: str) -> Path:
    return environment.run_dir() / "services" / f"{name}.json"
