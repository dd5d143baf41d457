"""MLflow's own compare view with three pipeline runs, in a real browser: shared parameters and metrics, and the
parallel-coordinates plot. Behind `make test-browser`.

RLHF_COMPARED=sqlite:////.../mlflow.db shows the last parent run of each of three recipes in that store, with learnt
figures, instead of three made here; with RLHF_SCREENSHOTS=docs/img too, the page is kept for
docs/how-to/compare-and-promote.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import mlflow
import pytest
from operated import chromium, free_port, keep, settled  # noqa: F401

from tests.flows.test_compare import three_parents

SHOWN = {
    "Parameters": ["reward.label", "ppo.learning_rate"],
    "Metrics": ["ppo/kl", "perplexity/policy", "reward/delta"],
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
    alone = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen([*command, "--backend-store-uri", store], cwd=tmp_path, env=alone)
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


def choose(page: Any, field: str, names: list[str]) -> None:
    """Pick the plot's axes, of what all the runs have: the list holds only the options that it shows, so type each."""
    typed = page.get_by_text(f"{field}:", exact=True).locator("xpath=following::input[1]")
    typed.click(force=True)
    offered = page.locator("[class*=select-dropdown]:visible")
    for name in names:
        typed.fill(name)
        offered.locator(f"[title='{name}']").click()
    page.keyboard.press("Escape")
    offered.wait_for(state="hidden")


def test_three_runs_of_three_recipes_compare(page_of_three, browser):
    page = browser.new_page()
    page.goto(page_of_three, wait_until="domcontentloaded")
    page.get_by_text("Comparing 3 Runs").first.wait_for()
    page.get_by_text("Parallel Coordinates Plot").first.wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    page.get_by_label("Close").click()  # MLflow's assistant takes a third of the page
    if not os.environ.get("RLHF_COMPARED"):
        assert "ppo/mean_scores" in page.locator(".js-plotly-plot").first.inner_text()  # without any choice
    page.get_by_role("button", name="Clear All").click()
    for field, names in SHOWN.items():
        choose(page, field, names)
    plot = page.locator(".js-plotly-plot").first.inner_text()
    for names in SHOWN.values():
        for name in names:
            assert name in plot
    if os.environ.get("RLHF_COMPARED"):
        keep(page, "compare-mlflow")
