"""The servers that show and run things, on this machine: in the foreground (`rlhf ui`), or left running with a worker
and everything deployed (`rlhf up`, `rlhf down`).

What is left running is known by a file each in RUN_DIR/services: process id and start time, so that neither a second
`up` starts it twice nor `down` ends a process of another's that has the id by now.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flows.servers import blank_databases, environment
from rlhf_lib.errors import EnvironmentFault

HOST, POOL, TAG = "127.0.0.1", "rlhf", "gpu"
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
    start, folder, store = [sys.executable, "-m"], environment.run_dir(), os.environ["MLFLOW_TRACKING_URI"]
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
    """Run both servers until Ctrl-C or SIGTERM. Raises EnvironmentFault for a port in use, or if a server exits."""
    import signal

    environment.check()
    blank_databases.provide()
    pair = servers(prefect_port, mlflow_port)
    for service in pair:
        _check_port(service)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    running: list[subprocess.Popen[bytes]] = []
    try:
        for service in pair:
            running.append(subprocess.Popen(service.command, env=os.environ | service.environment))
        for service, process in zip(pair, running, strict=True):
            page = f"http://{HOST}:{service.port}/{service.health}"
            await_page(page, service.name, partial(_ended, process), "its message is above")
        runs = _runs_page(pair[1].environment["MLFLOW_BACKEND_STORE_URI"], f"http://{HOST}:{mlflow_port}")
        print(f"{_pages(f'http://{HOST}:{prefect_port}', runs)}\nCtrl-C stops both", flush=True)
        while all(process.poll() is None for process in running):
            time.sleep(0.5)
        raise EnvironmentFault("a server exited; its message is above")
    except KeyboardInterrupt:
        return
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def up(prefect_port: int, mlflow_port: int) -> None:
    """Start the servers, work pool, concurrency limit, deployments and a worker that aren't there yet.

    A server elsewhere, named by PREFECT_API_URL or MLFLOW_TRACKING_URI, is used instead of starting one. Raises
    EnvironmentFault naming the port, the log file or the missing prefect.yaml.
    """
    if not Path("prefect.yaml").is_file():
        raise EnvironmentFault("no prefect.yaml here: run this in the project's folder, or copy the file from there")
    (environment.run_dir() / "services").mkdir(parents=True, exist_ok=True)
    new_databases = blank_databases.provide()
    prefect, mlflow = servers(prefect_port, mlflow_port)
    ours = f"http://{HOST}:{prefect_port}/api"
    if environment.prefect_api() in (None, ours):
        _start(prefect)
        os.environ["PREFECT_API_URL"] = ours
    store = os.environ["MLFLOW_TRACKING_URI"]
    if not store.startswith("http") or store == f"http://{HOST}:{mlflow_port}":
        _start(mlflow)
        os.environ["MLFLOW_TRACKING_URI"] = f"http://{HOST}:{mlflow_port}"
    for service in (prefect, mlflow):
        _await(service)
    blank_databases.keep(new_databases)
    environment.check()
    os.environ["RLHF_RUN_DIR"] = str(environment.run_dir())  # flow runs have working directories of their own

    _create_pool_and_limit()
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    result = subprocess.run(deploy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise EnvironmentFault(f"prefect deploy --all failed:\n{result.stdout}")
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    _start(Service("worker", [*worker, "--install-policy", "never"], {}))
    api, tracking = os.environ.get("PREFECT_API_URL") or environment.prefect_api(), os.environ["MLFLOW_TRACKING_URI"]
    print(_pages(str(api).removesuffix("/api"), _runs_page(tracking, tracking)))
    print(f"for other commands in this shell: export PREFECT_API_URL={api} MLFLOW_TRACKING_URI={tracking}")


def down() -> None:
    """Stop what `up` started, including the worker's flow runs; PPO saves its last completed step."""
    import psutil

    for name in ("worker", "mlflow", "prefect"):
        process = _running(name)
        if process is not None:
            family = [process, *process.children(recursive=True)]
            for member in family:
                _signal(member, "terminate")
            _, left = psutil.wait_procs(family, timeout=30)
            for member in left:
                _signal(member, "kill")
            psutil.wait_procs(left, timeout=10)
        _file(name).unlink(missing_ok=True)
        print(f"{name}: {'stopped' if process else 'was not running'}")


def _ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


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


def _create_pool_and_limit() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as client:
        with contextlib.suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        try:  # whoever has set another limit keeps it
            client.read_concurrency_limit_by_tag(TAG)
        except ObjectNotFound:
            client.create_concurrency_limit(TAG, 1)


def _start(service: Service) -> None:
    import psutil

    if _running(service.name) is not None:
        port = json.loads(_file(service.name).read_text())["port"]
        if port != service.port:
            raise EnvironmentFault(f"{service.name} runs on port {port} already: rlhf down first, or choose that port")
        print(f"{service.name}: already running")
        return
    _end_orphans(service.name)
    if service.port:
        _check_port(service)
    log = _file(service.name).with_suffix(".log")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            service.command,
            env=os.environ | service.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in this terminal is none of its business
        )
    record = {"pid": process.pid, "started": psutil.Process(process.pid).create_time(), "port": service.port}
    _file(service.name).write_text(json.dumps(record))
    print(f"{service.name}: started, process {process.pid}, log {log}")


def _await(service: Service) -> None:
    """Wait until the service answers, if it is ours."""
    if _running(service.name) is not None:
        page, log = f"http://{HOST}:{service.port}/{service.health}", _file(service.name).with_suffix(".log")
        await_page(page, service.name, lambda: _running(service.name) is None, f"see {log}")


def await_page(page: str, name: str, ended: Callable[[], bool], hint: str) -> None:
    """Return when the server answers, even if it only asks for a login. Raises EnvironmentFault with the hint if its
    process has ended, or after PATIENCE seconds."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(page, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            pass
        if ended():
            raise EnvironmentFault(f"{name} exited: {hint}")
        if time.monotonic() > until:
            raise EnvironmentFault(f"{name} doesn't answer on {page} after {PATIENCE:.0f} s: {hint}")
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
    """Kill the children of a service that was killed: they would keep its port. They are in the session that it led."""
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


def _signal(process: Any, how: str) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        getattr(process, how)()


def _file(name: str) -> Path:
    return environment.run_dir() / "services" / f"{name}.json"


def _check_port(service: Service) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, service.port))
        except OSError:
            raise EnvironmentFault(
                f"port {service.port} of {HOST} is taken: choose another by --{service.name}-port"
            ) from None
