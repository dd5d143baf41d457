"""The project as an operator meets it: `rlhf up`, a run triggered in Prefect's page by a real browser and followed to
its artifacts and to MLflow, two runs that queue, and `rlhf down`. Behind `make test-browser`, for it takes minutes.

With RLHF_SCREENSHOTS=docs/img the pages are kept as the pictures of docs/operate.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
from test_end_to_end import SETTINGS

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
FIELDS = ("ppo.steps", "ppo.batch_size")  # of the form
NAMES = ("prefect", "mlflow", "worker")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settled(condition: Any, what: str, patience: float = PATIENCE) -> Any:
    """The condition's first true value."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {patience:.0f} s")


@pytest.fixture(scope="module")
def operated(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """What `rlhf up` leaves running, on ports and in a run folder of its own."""
    folder, ports = tmp_path_factory.mktemp("operated"), (free_port(), free_port())
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RLHF_RUN"))}
    rlhf = [sys.executable, "-m", "flows.cli"]
    up = [*rlhf, "up", "--run-dir", str(folder), "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    run = {"cwd": Path(__file__).parents[1], "env": kept, "capture_output": True, "text": True, "timeout": 900}
    try:
        first = subprocess.run(up, **run)
        assert first.returncode == 0, first.stdout + first.stderr
        again = subprocess.run(up, **run)
        yield SimpleNamespace(
            folder=folder,
            prefect=f"http://127.0.0.1:{ports[0]}",
            mlflow=f"http://127.0.0.1:{ports[1]}",
            said=(first.stdout, again.stdout),
            processes={name: json.loads((folder / "services" / f"{name}.json").read_text())["pid"] for name in NAMES},
            down=lambda: subprocess.run([*rlhf, "down", "--run-dir", str(folder)], **run),
        )
    finally:
        subprocess.run([*rlhf, "down", "--run-dir", str(folder)], **run)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
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


def overrides() -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in SETTINGS.items() if key not in FIELDS]


def test_up_twice_starts_everything_once(operated):
    first, again = operated.said
    assert all(f"{name}: started" in first for name in NAMES)
    assert all(f"{name}: already running" in again for name in NAMES)
    limit = api(operated, "GET", "concurrency_limits/tag/gpu")
    assert limit["concurrency_limit"] == 1
    names = {deployment["name"] for deployment in api(operated, "POST", "deployments/filter", limit=50)}
    assert names == {"on-demand", "nightly"}


def test_a_run_is_triggered_in_the_browser_and_followed_to_its_artifacts(operated, browser):
    page = browser.new_page()
    page.goto(f"{operated.prefect}/deployments", wait_until="domcontentloaded")
    page.get_by_text("on-demand").first.wait_for()
    deployment = api(operated, "GET", "deployments/name/rlhf/on-demand")

    def triggered() -> Any:
        wanted = {"id": {"any_": [deployment["id"]]}}
        return api(operated, "POST", "flow_runs/filter", deployments=wanted, sort="EXPECTED_START_TIME_DESC")

    before = len(triggered())
    page.goto(f"{operated.prefect}/deployments/deployment/{deployment['id']}", wait_until="domcontentloaded")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()

    field = page.locator(".schema-form-property")
    steps = field.filter(has_text="PPO steps").locator("input")
    steps.fill("0")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("0 is less than the minimum of 1").first.wait_for()
    assert len(triggered()) == before
    for label, value in {
        "PPO steps": "3",
        "Learning rate": "0.0003",
        "KL coefficient": "0.1",
        "Batch size": "16",
    }.items():
        field.filter(has_text=label).locator("input").fill(value)
    lines = field.filter(has_text="Overrides")
    for i, line in enumerate(overrides()):
        lines.get_by_role("button", name="Add item").click()
        lines.locator("textarea, input").nth(i).fill(line)
    page.set_viewport_size({"width": 1280, "height": 1400})
    page.mouse.wheel(0, -10_000)
    keep(page, "trigger-form")
    page.set_viewport_size(SIZE)
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(re.compile("deployment"))

    run = settled(lambda: len(triggered()) > before and triggered()[0], "a flow run")
    page.goto(f"{operated.prefect}/runs/flow-run/{run['id']}", wait_until="domcontentloaded")
    page.get_by_text("Completed", exact=True).first.wait_for(timeout=1000 * PATIENCE)
    given = api(operated, "GET", f"flow_runs/{run['id']}")["parameters"]
    assert (given["ppo_steps"], given["learning_rate"], given["batch_size"]) == (3, 0.0003, 16)
    assert "seed" not in given  # left empty: the recipe's

    page.reload(wait_until="domcontentloaded")  # with the graph of what has become of it
    page.set_viewport_size({"width": 1280, "height": 1100})
    page.get_by_text("Artifacts", exact=True).click()
    for key in ("mlflow", "ppo-progress", "evaluation", "figures"):
        page.get_by_text(key, exact=True).first.wait_for()
    keep(page, "flow-run")
    kept = {a["key"]: a for a in api(operated, "POST", "artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}})}
    page.goto(f"{operated.prefect}/artifacts/artifact/{kept['evaluation']['id']}", wait_until="domcontentloaded")
    page.get_by_text("Drawn at random").first.wait_for()
    keep(page, "report")

    page.goto(f"{operated.prefect}/artifacts/artifact/{kept['mlflow']['id']}", wait_until="domcontentloaded")
    link = page.get_by_role("link", name="This run in MLflow").get_attribute("href")
    assert link.startswith(operated.mlflow)
    page.goto(link, wait_until="domcontentloaded")
    page.get_by_text("reward/delta").first.wait_for()
    for button in page.get_by_role("button", name="Close").all():  # the assistant's panel
        button.click()
    keep(page, "mlflow-run")
    page.close()


def test_two_runs_queue_for_the_gpu(operated):
    """Of two deployments, whose own limits don't part them: no two tasks under the tag's limit overlap."""
    given = {"recipe": "embedded", "overrides": [*overrides(), "ppo.steps=2", "ppo.batch_size=16"]}
    runs = []
    for seed, name in enumerate(("on-demand", "nightly", "on-demand"), start=1):  # by the seed each has its own stages
        deployment = api(operated, "GET", f"deployments/name/rlhf/{name}")
        body = {"parameters": {**given, "seed": seed}, "state": {"type": "SCHEDULED"}}
        runs.append(api(operated, "POST", f"deployments/{deployment['id']}/create_flow_run", **body)["id"])

    def read(run: str) -> Any:
        return api(operated, "GET", f"flow_runs/{run}")

    def finished() -> bool:
        states = [read(run)["state_type"] for run in runs]
        assert not {"FAILED", "CRASHED"} & set(states), states
        return set(states) == {"COMPLETED"}

    settled(finished, "three runs", 2 * PATIENCE)
    tasks = api(operated, "POST", "task_runs/filter", flow_runs={"id": {"any_": runs}}, limit=200)
    spans = sorted((t["start_time"], t["end_time"]) for t in tasks if "gpu" in t["tags"])
    assert len(spans) == 3 * 6
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    first, _, third = map(read, runs)
    assert first["end_time"] <= third["start_time"]


def test_settings_that_only_the_recipe_can_refuse_fail_the_run_at_once(operated):
    """Whether a batch is a multiple of its mini-batch no schema tells."""
    deployment = api(operated, "GET", "deployments/name/rlhf/on-demand")
    given = {"recipe": "embedded", "batch_size": 50}
    body = {"parameters": given, "state": {"type": "SCHEDULED"}}
    run = api(operated, "POST", f"deployments/{deployment['id']}/create_flow_run", **body)["id"]
    ended = settled(lambda: _ended(api(operated, "GET", f"flow_runs/{run}")), "a bad run's end")
    assert ended["state_type"] == "FAILED"
    assert "batch_size (50) must be a multiple of mini_batch_size" in ended["state"]["message"]
    assert not api(operated, "POST", "task_runs/filter", flow_runs={"id": {"any_": [run]}})


def _ended(run: Any) -> Any:
    return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def test_what_is_kept_between_tasks_is_small_json(operated):
    """The stages' records, and what Prefect stores of a run that failed."""
    records = list(operated.folder.rglob("record.json"))
    assert len(records) > 10
    stored = [file for file in (operated.folder / "prefect" / "storage").rglob("*") if file.is_file()]
    assert stored
    for file in (*records, *stored):
        assert file.stat().st_size < 100_000, file
        json.loads(file.read_text())
    for file in stored:  # a record tells its result's serializer, and is JSON around a pickle too
        serializer = json.loads(file.read_text()).get("metadata", {}).get("serializer", {"type": "json"})
        assert serializer["type"] == "json", file


def test_down_stops_exactly_what_up_started(operated):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        families = [p for pid in operated.processes.values() for p in (psutil.Process(pid), *_below(pid))]
        result = operated.down()
        assert result.returncode == 0, result.stderr
        assert all(f"{name}: stopped" in result.stdout for name in NAMES)
        assert not [p for p in families if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert bystander.poll() is None
        assert "was not running" in operated.down().stdout
    finally:
        bystander.kill()
        bystander.wait()


def _below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)
