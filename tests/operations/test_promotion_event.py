"""A promotion by hand, heard by the server that `rlhf up` starts: the automation of deploy/automations.yaml runs a
comparison with what it says. Behind `make test-browser` with the others that need the operated project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest
import yaml
from operated import PATIENCE, ROOT, api, prefect, services_left_running, settled  # noqa: F401

from tests.end_to_end.test_pipeline import SETTINGS

AUTOMATION = "rlhf-compare-new-champion"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def rlhf(operated, *words: str) -> str:
    """The command, told of the servers."""
    servers = {
        "PREFECT_API_URL": f"{operated.prefect}/api",
        "MLFLOW_TRACKING_URI": operated.mlflow,
        "RLHF_RUN_DIR": str(operated.folder),
    }
    command = [sys.executable, "-m", "flows.cli", *words]
    settings = {"cwd": ROOT, "env": os.environ | servers, "capture_output": True, "text": True}
    done = subprocess.run(command, **settings, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_champion_is_compared_with_what_came_before(operated, tmp_path):
    deployment = api(operated, "GET", "deployments/name/compare/compare-versions")
    described = yaml.safe_load((ROOT / "deploy" / "automations.yaml").read_text())
    described["automations"] = [one for one in described["automations"] if one["name"] == AUTOMATION]
    text = yaml.safe_dump(described).replace(str(UUID(int=1)), deployment["id"])
    (tmp_path / "automation.yaml").write_text(text)
    prefect(operated, "automation", "create", "--from-file", str(tmp_path / "automation.yaml"))

    settings = SETTINGS | {"name": "told", "registration.promote": False, "evaluation.best_of": 0}
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    rlhf(operated, "run", "embedded", *options)
    assert "version 1 promoted by hand" in rlhf(operated, "promote", "told", "1", "--why", "to see who hears of it")

    def compared() -> Any:
        wanted = {"deployments": {"name": {"any_": ["compare-versions"]}}}
        runs = api(operated, "POST", "flow_runs/filter", **wanted)
        return runs and runs[0]["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED") and runs

    (run,) = settled(compared, "the comparison's end")
    assert run["state"]["type"] == "COMPLETED", run["state"]
    assert run["parameters"]["models"] == ["reference", "models:/told/1"]  # there was no champion before it
    assert run["name"] == "compare reference, told 1"
    assert run["created_by"]["type"] == "AUTOMATION"
