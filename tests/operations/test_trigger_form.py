"""The project as an operator meets it: `rlhf up`, a run triggered in Prefect's page by a real browser and followed to
its artifacts and to MLflow, two runs that queue, and `rlhf down`. Behind `make test-browser`, for it takes minutes.

With RLHF_SCREENSHOTS=docs/img the pages are kept as the pictures of docs/operate.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any
from uuid import UUID

import httpx
import mlflow
import psutil
import pytest
import yaml
from operated import (  # noqa: F401
    NAMES,
    PATIENCE,
    ROOT,
    SIZE,
    api,
    chromium,
    keep,
    prefect,
    services_left_running,
    settled,
)

from tests.end_to_end.test_pipeline import SETTINGS

FIELDS = ("ppo.steps", "ppo.batch_size")  # of the form
FILLED = {"Learning rate": 0.0003, "KL coefficient": 0.1}
NAME = "three times the learning rate"
PICTURES = "RLHF_SCREENSHOTS" in os.environ
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def overrides() -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in SETTINGS.items() if key not in FIELDS]


def test_up_twice_starts_everything_once(operated):
    first, again = operated.said
    assert all(f"{name}: started" in first for name in NAMES)
    assert all(f"{name}: already running" in again for name in NAMES)
    assert f"Annotate {operated.annotate}  (a login: rlhf annotators reset owner --url {operated.annotate})" in first
    assert "<h1>Log in</h1>" in httpx.get(f"{operated.annotate}/rank", follow_redirects=True).text
    assert "/login/" not in (operated.folder / "services" / "annotate.log").read_text()
    limit = api(operated, "GET", "concurrency_limits/tag/gpu")
    assert limit["concurrency_limit"] == 1
    names = {deployment["name"] for deployment in api(operated, "POST", "deployments/filter", limit=50)}
    assert names == {"train-on-demand", "nightly", "compare-versions", "collect-responses", "clean-old-runs"}


def test_a_run_is_triggered_in_the_browser_and_followed_to_its_artifacts(operated, browser):
    page = browser.new_page()
    page.goto(f"{operated.prefect}/deployments", wait_until="domcontentloaded")
    page.get_by_text("train-on-demand").first.wait_for()
    deployment = api(operated, "GET", "deployments/name/rlhf/train-on-demand")

    def triggered() -> Any:
        wanted = {"id": {"any_": [deployment["id"]]}}
        return api(operated, "POST", "flow_runs/filter", deployments=wanted, sort="EXPECTED_START_TIME_DESC")

    # the pictures are of a run that learns, which takes minutes
    ppo_steps, batch_size, given_lines = (30, 96, ["generation.temperature=0.9"]) if PICTURES else (3, 16, overrides())
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
    for label, value in {"PPO steps": ppo_steps, "Batch size": batch_size, **FILLED}.items():
        field.filter(has_text=label).locator("input").fill(str(value))
    page.locator(".flow-run-name-input input").fill(NAME)  # in the place of the one that the page made up
    lines = field.filter(has_text="Overrides")
    for i, line in enumerate(given_lines):
        lines.get_by_role("button", name="Add item").click()
        lines.locator("textarea, input").nth(i).fill(line)
    page.set_viewport_size({"width": 1280, "height": 1800})
    page.mouse.wheel(0, -10_000)
    refusals = page.get_by_text("Error creating flow run")  # notes that go by themselves
    settled(lambda: refusals.count() == 0, "a form without notes", 60)
    keep(page, "trigger-form")
    page.set_viewport_size(SIZE)
    submit = page.get_by_role("button", name="Submit")

    def submitted() -> Any:  # a click into a page that is still moving is lost
        if submit.is_visible():
            submit.click()
            page.wait_for_timeout(5000)
        return len(triggered()) > before and triggered()[0]

    run = settled(submitted, "a flow run")
    run_page = f"{operated.prefect}/runs/flow-run/{run['id']}"
    page.goto(run_page, wait_until="domcontentloaded")
    page.get_by_text("Running", exact=True).first.wait_for()
    page.goto("about:blank")  # the live graph, drawn without a GPU, takes half a core from the run
    ended = settled(lambda: _ended(api(operated, "GET", f"flow_runs/{run['id']}")), "its end", 2 * PATIENCE)
    assert ended["state_type"] == "COMPLETED", ended["state"]
    assert ended["name"] == NAME
    given = ended["parameters"]
    assert (given["ppo_steps"], given["batch_size"], given["overrides"]) == (ppo_steps, batch_size, given_lines)
    assert (given["learning_rate"], given["kl_coef"]) == tuple(FILLED.values())
    assert "seed" not in given  # left empty: the recipe's

    page.goto(run_page, wait_until="domcontentloaded")
    page.get_by_text("Completed", exact=True).first.wait_for()
    page.set_viewport_size({"width": 1280, "height": 1100})
    page.get_by_text("Artifacts", exact=True).click()
    for key in ("mlflow", "mlflow-runs", "ppo-progress", "evaluation", "figures"):
        page.get_by_text(key, exact=True).first.wait_for()
    keep(page, "flow-run")
    kept = {a["key"]: a for a in api(operated, "POST", "artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}})}
    page.goto(f"{operated.prefect}/artifacts/artifact/{kept['evaluation']['id']}", wait_until="domcontentloaded")
    page.get_by_text("Drawn at random").first.wait_for()
    page.set_viewport_size({"width": 1600, "height": 1100})
    keep(page, "report")
    page.set_viewport_size({"width": 1280, "height": 1100})

    page.goto(f"{operated.prefect}/artifacts/artifact/{kept['mlflow']['id']}", wait_until="domcontentloaded")
    link = page.get_by_role("link", name="This run in MLflow").get_attribute("href")
    assert link.startswith(operated.mlflow)
    page.goto(link, wait_until="domcontentloaded")
    page.get_by_text("reward/delta").first.wait_for()
    for button in page.get_by_role("button", name="Close").all():  # the assistant's panel
        button.click()
    keep(page, "mlflow-run")

    page.goto(f"{operated.prefect}/artifacts/artifact/{kept['mlflow-runs']['id']}", wait_until="domcontentloaded")
    link = page.get_by_role("link", name="All runs in MLflow").get_attribute("href")
    assert link in operated.said[0]  # what `rlhf up` prints
    page.set_viewport_size({"width": 1800, "height": 600})
    page.goto(link, wait_until="domcontentloaded")
    page.get_by_text(NAME, exact=True).first.wait_for()
    for button in page.get_by_role("button", name="Close").all():
        button.click()
    shown = ("promoted", "reward/delta", "ppo/kl", "perplexity/policy", "Models", "Dataset", "customer-service")
    for text in (*shown, "embedded"):  # a registered model's link
        page.locator(".ag-root").get_by_text(text).first.wait_for()
    keep(page, "mlflow-runs")
    page.set_viewport_size({"width": 1600, "height": 900})
    page.goto(f"{link}&compareRunsMode=CHART", wait_until="domcontentloaded")
    page.get_by_text("Reward and KL", exact=True).wait_for()
    for metric in ("ppo/mean_scores", "objective/kl", "reward/delta"):
        page.get_by_text(metric, exact=True).first.wait_for()
    keep(page, "mlflow-charts")
    page.close()


def test_two_runs_queue_for_the_gpu(operated):
    """Of two deployments, whose own limits don't part them: no two tasks under the tag's limit overlap."""
    given = {"recipe": "embedded", "overrides": [*overrides(), "ppo.steps=2", "ppo.batch_size=16"]}
    runs = []
    names = ("train-on-demand", "nightly", "train-on-demand")
    for seed, name in enumerate(names, start=1):  # by the seed each has its own stages
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


@pytest.fixture
def told(operated, tmp_path) -> Iterator[list[dict[str, str]]]:
    """What deploy/automations.yaml, set up as docs/operate.md says, sends to a webhook of ours."""
    received: list[dict[str, str]] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            kind = api(operated, "GET", "block_types/slug/custom-webhook")["id"]
            wanted = {"block_type_id": {"any_": [kind]}}
            schema = api(operated, "POST", "block_schemas/filter", block_schemas=wanted)[0]["id"]
            message = {"subject": "{{subject}}", "body": "{{body}}"}
            data = {"name": "operator", "url": f"http://127.0.0.1:{server.server_port}", "json_data": message}
            block = {"name": "operator", "data": data, "block_type_id": kind, "block_schema_id": schema}
            block_id = api(operated, "POST", "block_documents/", **block)["id"]
            automations = (ROOT / "deploy" / "automations.yaml").read_text()
            compares = api(operated, "GET", "deployments/name/compare/compare-versions")["id"]
            filled = automations.replace(str(UUID(int=0)), block_id).replace(str(UUID(int=1)), compares)
            (tmp_path / "automations.yaml").write_text(filled)
            prefect(operated, "automation", "create", "--from-file", str(tmp_path / "automations.yaml"))
            yield received
        finally:
            server.shutdown()


def test_runs_that_fail_at_once_are_told(operated, told):
    """Whether a batch is as large as its mini-batch no schema tells, nor whether a version is there."""
    failing = {
        "rlhf/train-on-demand": {"recipe": "embedded", "batch_size": 40},
        "compare/compare-versions": {"models": ["models:/embedded/99", "reference"]},
    }
    runs = []
    for name, parameters in failing.items():
        deployment = api(operated, "GET", f"deployments/name/{name}")
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        runs.append(api(operated, "POST", f"deployments/{deployment['id']}/create_flow_run", **body)["id"])
    ended = [
        settled(lambda run=run: _ended(api(operated, "GET", f"flow_runs/{run}")), "a bad run's end") for run in runs
    ]
    assert [run["state_type"] for run in ended] == ["FAILED", "FAILED"]
    assert "mini_batch_size (48) is more than batch_size (40)" in ended[0]["state"]["message"]
    assert not api(operated, "POST", "task_runs/filter", flow_runs={"id": {"any_": [runs[0]]}})
    subjects = [f"{run['name']}: Failed" for run in ended]
    # with another writer in its way the server evaluates an event anew: told twice, rather than not at all
    settled(lambda: {message["subject"] for message in told} == set(subjects), f"notifications of {subjects}", 120)
    messages = {message["subject"]: message["body"] for message in told}
    for run, subject in zip(ended, subjects, strict=True):
        body = messages[subject]
        assert run["state"]["message"] in body
        assert f"{operated.prefect}/runs/flow-run/{run['id']}" in body


def test_a_schedule_fires_by_itself(operated, tmp_path):
    """nightly's own, by its slug: made due every minute in a copy of prefect.yaml, and given back its time."""

    def schedules() -> Any:
        found = api(operated, "GET", "deployments/name/rlhf/nightly")["schedules"]
        return {s["slug"]: (s["id"], s["schedule"]["cron"], s["active"], s["parameters"]) for s in found}

    def fired() -> Any:
        wanted = {"deployments": {"name": {"any_": ["nightly"]}}, "sort": "EXPECTED_START_TIME_ASC"}
        runs = api(operated, "POST", "flow_runs/filter", **wanted)
        return next((r for r in runs if r["auto_scheduled"] and r["state_type"] not in ("SCHEDULED", "PENDING")), None)

    nights = schedules()
    described = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    nightly = next(deployment for deployment in described["deployments"] if deployment["name"] == "nightly")
    nightly["parameters"]["overrides"] = [*overrides(), "ppo.batch_size=16"]
    own = {"ppo_steps": 2, "promote": False}
    nightly["schedules"][0] |= {"cron": "* * * * *", "parameters": own}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(described))
    prefect(operated, "deploy", "--prefect-file", str(tmp_path / "prefect.yaml"), "--name", "nightly")
    try:
        assert schedules()["weeknights"][1] == "* * * * *"
        run = settled(fired, "a run that nobody triggered")
    finally:
        prefect(operated, "deploy", "--all")
    assert schedules() == nights

    ended = settled(lambda: _ended(api(operated, "GET", f"flow_runs/{run['id']}")), "its end")
    assert ended["state_type"] == "COMPLETED"
    assert ended["parameters"] == nightly["parameters"] | own
    client = mlflow.MlflowClient(operated.mlflow)
    experiment = client.get_experiment_by_name("rlhf").experiment_id
    [tracked] = client.search_runs([experiment], f"tags.prefect_flow_run_id = '{run['id']}'")
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["ppo.steps"] == "2"
    assert tracked.data.tags["model.promoted"] == "False"


def _ended(run: Any) -> Any:
    return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def test_what_is_kept_between_tasks_is_small_json(operated):
    """The stages' records, and what Prefect stores of a run that failed."""
    records = list(operated.folder.rglob("record.json"))
    assert len(records) >= 4  # of one run: data, base model, reward model, checks
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
