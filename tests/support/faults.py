"""Servers, a worker and flow runs as an operator has them, and what goes wrong with them.

The processes are the real ones of `rlhf up`; nothing is simulated but the moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import httpx
import psutil
from operated import PATIENCE, ROOT, free_port, settled

from tests.end_to_end.test_pipeline import SETTINGS, STAGES

TARGETS = ("flow", "worker", "prefect", "mlflow")
STEPS = 8
RECIPE = {key: value for key, value in SETTINGS.items() if not key.startswith("ppo.")} | {
    "ppo.steps": STEPS,
    "ppo.batch_size": 16,
    "ppo.mini_batch_size": 8,
    "ppo.checkpoint_every": 2,
}
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
OPEN = ("RUNNING", "SCHEDULED")
ONCE = ("ppo/steps", "ppo/seconds", "ppo/final_kl", "ppo/warnings")  # PPO's metrics that are no step's


class Child:
    """A stage's MLflow run."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.id, self.status = run["info"]["run_id"], run["info"]["status"]
        self.start, self.end = run["info"]["start_time"] / 1000, run["info"].get("end_time", 0) / 1000
        self.tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
        self.metrics = {metric["key"]: metric["value"] for metric in run["data"].get("metrics", [])}
        self.folder = Path(unquote(urlparse(run["info"]["artifact_uri"]).path))

    @property
    def stage(self) -> str:
        return self.tags.get("stage", "")

    @property
    def reused(self) -> str | None:
        return self.tags.get("reused")


class FlowRun:
    """One that was triggered, and its pipeline in MLflow."""

    def __init__(self, operated: Operated, identifier: str, folder: Path, model: str) -> None:
        self.operated, self.id, self.folder, self.model = operated, identifier, folder, model

    @property
    def state(self) -> dict[str, Any]:
        return self.operated.prefect("GET", f"flow_runs/{self.id}")["state"]

    def ended(self, patience: float = PATIENCE) -> dict[str, Any]:
        def reached() -> Any:
            state = self.state
            return state if state["type"] in ENDED else None

        return settled(reached, f"the end of flow run {self.id}", patience)

    def parents(self) -> list[Child]:
        return self.operated.search(f"tags.prefect_flow_run_id = '{self.id}'")

    def children(self) -> list[Child]:
        """Of all its attempts, in their order."""
        found = [c for p in self.parents() for c in self.operated.search(f"tags.mlflow.parentRunId = '{p.id}'")]
        return sorted(found, key=lambda child: child.start)

    def at_work(self, stage: str) -> Child | None:
        """The stage's run where it is computing."""
        children = [child for child in self.children() if child.status in OPEN and child.reused == "false"]
        return next((child for child in children if child.stage == stage), None)

    def await_stage(self, stage: str) -> Child:
        def begun() -> Child | None:
            assert self.state["type"] not in ENDED, self.state
            return self.at_work(stage)

        return settled(begun, f"stage {stage} of flow run {self.id}", every=0.05)

    def record(self) -> dict[str, Any]:
        (parent,) = self.parents()
        return json.loads((parent.folder / "summary.json").read_text())

    def processes(self) -> list[psutil.Process]:
        """The flow's process and all that belong to it, whoever is their parent by now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT__FLOW_RUN_ID") == self.id:
                    found += [process, *process.children(recursive=True)]
        return list({process.pid: process for process in found}.values())

    def kill(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def retry(self) -> None:
        """As an operator does some seconds later: a worker reports a process that died once more when the hooks have
        ended, and an attempt that had begun by then would be the one that it reports."""
        if self.state["type"] == "CRASHED":
            settled(self._closed, "the end of the hooks", 120)
        self.operated.command("-m", "prefect", "flow-run", "retry", self.id)

    def _closed(self) -> bool:
        of_this = {"id": {"any_": [self.id]}}
        still = {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
        tasks = self.operated.prefect("POST", "task_runs/filter", flow_runs=of_this, task_runs=still)
        return not tasks and not self.operated.service("worker").children()

    def cancel(self) -> None:
        """As the page's button does."""
        state = {"type": "CANCELLING", "name": "Cancelling"}
        answer = self.operated.prefect("POST", f"flow_runs/{self.id}/set_state", state=state, force=False)
        assert answer["status"] == "ACCEPT", answer


class Operated:
    """`rlhf up` on ports and in a run folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ports = folder, (free_port(), free_port(), free_port())
        self.api, self.tracking = (f"http://127.0.0.1:{port}" for port in self.ports[:2])
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RLHF_RUN"))}
        self.environment = kept | {"OMP_NUM_THREADS": "1", "PREFECT_WORKER_QUERY_SECONDS": "2"}
        self.http = httpx.Client(timeout=60)
        self.runs: list[FlowRun] = []

    def command(self, *words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these words, told of both servers."""
        told = {"PREFECT_API_URL": f"{self.api}/api", "MLFLOW_TRACKING_URI": self.tracking} | environment
        result = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=self.environment | told,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    def up(self) -> float:
        """Start what isn't running; the seconds that it took."""
        start = time.monotonic()
        ports = ["--prefect-port", str(self.ports[0]), "--mlflow-port", str(self.ports[1])]
        ports += ["--annotate-port", str(self.ports[2])]
        up = [sys.executable, "-m", "flows.cli", "up", "--run-dir", str(self.folder), *ports]
        result = subprocess.run(up, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=900)
        assert result.returncode == 0, result.stdout + result.stderr
        return time.monotonic() - start

    def down(self) -> None:
        down = [sys.executable, "-m", "flows.cli", "down", "--run-dir", str(self.folder)]
        subprocess.run(down, cwd=ROOT, env=self.environment, capture_output=True, timeout=900)
        for run in self.runs:
            run.kill()

    def service(self, name: str) -> psutil.Process:
        return psutil.Process(json.loads((self.folder / "services" / f"{name}.json").read_text())["pid"])

    def kill(self, name: str, *, whole: bool = True, how: int = signal.SIGKILL) -> None:
        """The service's process, and with `whole` its children too; not the flow runs of a worker."""
        process = self.service(name)
        family = process.children(recursive=True) if whole and name != "worker" else []
        for member in (process, *family):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(how)
        process.wait(60)

    def prefect(self, method: str, path: str, **body: Any) -> Any:
        def answered() -> Any:
            answer = self.http.request(method, f"{self.api}/api/{path}", json=body or None)
            assert answer.is_success or answer.status_code in (409, 503), answer.text
            return answer.is_success and [answer.json()]

        return settled(answered, path, 120)[0]

    def mlflow(self, method: str, path: str, **body: Any) -> Any:
        given: Any = {"params": body} if method == "GET" else {"json": body}
        answer = self.http.request(method, f"{self.tracking}/api/2.0/mlflow/{path}", **given)
        answer.raise_for_status()
        return answer.json()

    def search(self, condition: str) -> list[Child]:
        experiments = self.mlflow("GET", "experiments/search", max_results=50).get("experiments", [])
        ids = [experiment["experiment_id"] for experiment in experiments]
        found = self.mlflow("POST", "runs/search", experiment_ids=ids, filter=condition, max_results=500)
        return [Child(run) for run in found.get("runs", [])]

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        found = self.mlflow("GET", "metrics/get-history", run_id=run_id, metric_key=metric, max_results=5000)
        return sorted((int(point["step"]), point["value"]) for point in found["metrics"])

    def versions(self, model: str) -> list[str]:
        found = self.mlflow("GET", "model-versions/search", filter=f"name='{model}'")
        return [version["version"] for version in found.get("model_versions", [])]

    def trigger(
        self, model: str, *, folder: str = "", environment: dict[str, str] | None = None, **given: Any
    ) -> FlowRun:
        """A run of the short recipe that registers `model`, in a run folder of its own where one is named."""
        where = self.folder / folder
        settings = RECIPE | {"registration.name": model} | given.pop("settings", {})
        parameters = {"recipe": "embedded", "overrides": [f"{k}={json.dumps(v)}" for k, v in settings.items()]} | given
        variables = {"env": {"RLHF_RUN_DIR": str(where)} | (environment or {})}
        deployment = self.prefect("GET", "deployments/name/rlhf/train-on-demand")["id"]
        body = {"parameters": parameters, "job_variables": variables, "state": {"type": "SCHEDULED"}}
        made = self.prefect("POST", f"deployments/{deployment}/create_flow_run", **body)
        self.runs.append(FlowRun(self, made["id"], where, model))
        return self.runs[-1]

    def logs(self, run: FlowRun, sort: str = "TIMESTAMP_ASC") -> list[dict[str, Any]]:
        return self.prefect("POST", "logs/filter", logs={"flow_run_id": {"any_": [run.id]}}, sort=sort, limit=100)


@contextmanager
def operated(folder: Path) -> Iterator[Operated]:
    servers = Operated(folder)
    try:
        servers.up()
        yield servers
    finally:
        servers.down()


# ---------------------------------------------------------------- what must hold afterwards


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """What no fault may change: all but names and times."""
    sections = {name: record[name] for name in ("reward_model", "reward", "perplexity", "diversity")}
    return sections | {"ppo": {key: record["ppo"][key] for key in ("steps", "kl")}}


def assert_whole(run: FlowRun, expected: dict[str, Any], *, reused: int = 0) -> None:
    """The flow run ended as if nothing had happened, having done nothing twice; `reused`: of its first stages."""
    assert run.state["type"] == "COMPLETED", run.state
    record, servers = run.record(), run.operated
    assert figures(record) == expected
    (parent,), children = run.parents(), run.children()
    assert parent.status == "FINISHED"
    assert "failure" not in parent.tags
    assert not [child.stage for child in children if child.status in OPEN]
    done = Counter(child.stage for child in children if child.status == "FINISHED" and child.reused == "false")
    assert done == Counter(STAGES[reused:])
    assert Counter(c.stage for c in children if c.status == "FINISHED") == Counter(STAGES)
    last = {child.stage: child for child in children if child.status == "FINISHED"}
    assert all(child.metrics["seconds"] > 0 for child in last.values() if child.reused == "false")
    for name in last["ppo"].metrics:
        if "/" in name and name not in ONCE and not name.startswith("system/"):
            told = [step for step, _ in servers.history(last["ppo"].id, name)]
            assert told == list(range(1, STEPS + 1)), (name, told)
    samples = json.loads((last["ppo"].folder / "samples.json").read_text())["data"]
    assert len({json.dumps(row) for row in samples}) == len(samples) > 0
    assert servers.versions(run.model) == ["1"]
    assert record["model"]["version"] == "1"


def kill_at_random(
    target: str, stage: str, run: FlowRun, usual: dict[str, float], draw: random.Random
) -> dict[str, Any] | None:
    """SIGKILL in the middle of the stage: at its start, or after a share of the time that it usually takes. What was
    done; None where the stage had ended before."""
    child = run.at_work(stage)
    if child is None:
        return None
    wait = draw.choice([0.0, draw.uniform(0, 0.7)]) * usual[stage]
    whole = draw.random() < 0.5
    time.sleep(max(0.0, child.start + wait - time.time()))
    children = run.children()
    if not any(c.id == child.id and c.status in OPEN for c in children):
        return None
    moment = time.time() - child.start
    if target == "flow":
        run.kill()
    else:
        run.operated.kill(target, whole=whole)
    attempt = sum(c.stage == stage for c in children)
    what = {"target": target, "stage": stage, "moment": round(moment, 2), "attempt": attempt}
    return what | ({"children": whole} if target in ("prefect", "mlflow") else {})


def recover(target: str, run: FlowRun) -> dict[str, Any]:
    """Start again what was killed, try the run again where it has ended; what that took, and how far it had come."""
    start, needed = time.monotonic(), []
    if target == "flow":
        state = run.ended()
    else:
        run.operated.up()
        needed.append("up")
        state = run.state
    while state["type"] in ("FAILED", "CRASHED"):
        run.retry()
        needed.append("retry")
        state = run.state
    return {"needed": " + ".join(needed) or "nothing", "seconds": round(time.monotonic() - start, 1)}
