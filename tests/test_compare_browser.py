"""MLflow's own compare view with three pipeline runs, in a real browser: shared parameters and metrics, and the
parallel-coordinates plot. Behind `make test-browser`.

With RLHF_SCREENSHOTS=docs/img the page is kept for docs/how-to/compare-and-promote.md; RLHF_COMPARED=sqlite:///.../mlflow.db
shows the last parent run of each recipe in that store instead of three made here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import mlflow
import pytest
from test_compare import three_parents
from test_trigger_form import browser, free_port, keep, settled  # noqa: F401

SHOWN = {
    "params": ["recipe name", "reward.label"],
    "metrics": ["ppo/kl", "perplexity/policy", "reward/delta"],
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def page_of_three(mlflow_store, tmp_path) -> Iterator[str]:
    """The compare view's address, on an MLflow server of its own."""
    store = os.environ.get("RLHF_COMPARED")
    if store:
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(store)
        runs = mlflow.search_runs(
            experiment_names=["rlhf"], filter_string="attributes.status = 'FINISHED' and metrics.`reward/delta` > -1e9"
        )
        parents = runs[runs["tags.mlflow.parentRunId"].isna()].drop_duplicates("tags.recipe").head(3)
        ids, experiment = list(parents["run_id"]), parents["experiment_id"].iloc[0]
        mlflow.set_tracking_uri(before)
    else:
        with mlflow_store(tmp_path):
            parents = three_parents(tmp_path)
            ids, experiment = list(parents["run_id"]), parents["experiment_id"].iloc[0]
        store = f"sqlite:///{tmp_path}/mlflow.db"
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen([*command, "--backend-store-uri", store], cwd=tmp_path)
    try:
        settled(lambda: _answers(f"http://127.0.0.1:{port}/health"), "MLflow's server")
        chosen = f"runs={quote(json.dumps(ids))}&experiments={quote(json.dumps([str(experiment)]))}"
        yield f"http://127.0.0.1:{port}/#/compare-runs?{chosen}"
    finally:
        server.terminate()
        server.wait(timeout=600)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


def test_three_runs_of_three_recipes_compare(page_of_three, browser):  # noqa: F811
    page = browser.new_page()
    page.goto(page_of_three, wait_until="domcontentloaded")
    page.get_by_text("Comparing 3 Runs").first.wait_for()
    page.get_by_text("Parallel Coordinates Plot").first.wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    assistant = page.get_by_text("MLflow Assistant")  # it takes a third of the page
    if assistant.count():
        assistant.first.locator("xpath=following::button[3]").click()
    page.get_by_role("button", name="Clear All").click()
    for field, wanted in (("Parameters:", SHOWN["params"]), ("Metrics:", SHOWN["metrics"])):
        chooser = page.get_by_text(field, exact=True).locator("xpath=following::input[1]")
        for name in wanted:
            chooser.fill(name)
            page.locator(f".ant-select-item-option[title='{name}']").click()
        page.keyboard.press("Escape")
    text = page.locator("body").inner_text()
    assert "reward/delta" in text
    assert "ppo.learning_rate" in text
    keep(page, "compare-mlflow")
