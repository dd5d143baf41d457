"""prefect.yaml on a real server: what is deployed, the form's schema, and what it refuses before there is a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.states import Completed
from prefect.utilities.callables import parameter_schema

from flows.rlhf import rlhf
from flows.servers.deployments import remove_renamed
from rlhf_lib.recipe import shipped

ROOT = Path(__file__).parents[2]
NAMES = (
    "rlhf/train-on-demand",
    "rlhf/nightly",
    "collect/collect-responses",
    "compare/compare-versions",
    "retention/clean-old-runs",
)


@pytest.fixture(scope="module")
def deployed(prefect_server):
    """Everything in prefect.yaml, deployed twice by the documented command; its import times as it tells them."""
    environment = os.environ | {"PREFECT_API_URL": str(get_current_settings().api.url)}
    deploy = [sys.executable, "-X", "importtime", "-m", "prefect", "--no-prompt", "deploy", "--all"]
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="rlhf", type="process"))
        for _ in range(2):
            result = subprocess.run(deploy, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
            assert result.returncode == 0, result.stdout
        yield client, result.stderr


def test_deploying_twice_leaves_the_named_deployments_with_their_schedules(deployed):
    client, _ = deployed
    described = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    found = [client.read_deployment_by_name(name) for name in NAMES]
    assert len(found) == len(described)
    for deployment in found:
        assert deployment.work_pool_name == "rlhf"
        assert deployment.tags
        assert deployment.global_concurrency_limit.limit == 1
        assert deployment.concurrency_options.collision_strategy.value == "ENQUEUE"
    nightly = {schedule.slug: schedule for schedule in found[1].schedules}
    assert set(nightly) == {"weeknights", "sundays"}
    assert nightly["weeknights"].schedule.timezone == "Europe/Berlin"
    assert nightly["weeknights"].parameters == {"ppo_steps": 20, "promote": False}
    assert nightly["sundays"].parameters == {"ppo_steps": 100, "fresh": True}
    assert len({deployment.name for deployment in found}) == len(found)  # each is told by its name alone
    (weekly,) = found[4].schedules
    assert not weekly.active  # what deletes files is off until somebody turns it on


def test_deploying_imports_nothing_heavy(deployed):
    _, imported = deployed
    modules = {line.rpartition("|")[2].strip() for line in imported.splitlines() if line.startswith("import time:")}
    assert "flows.orchestration.form" in modules
    assert not modules & {"torch", "transformers", "trl", "datasets", "mlflow", "matplotlib", "pandas"}


def test_the_form_is_flat_with_the_recipe_as_a_drop_down():
    schema = parameter_schema(rlhf).model_dump()
    fields = schema["properties"]
    assert fields["recipe"]["enum"] == shipped()
    assert fields["recipe"]["default"] == "embedded"
    assert {field["type"] for field in fields.values()} <= {"string", "integer", "number", "boolean", "array"}
    assert not schema["required"]
    assert not schema["definitions"]
    assert all(field["description"] for field in fields.values())
    assert (fields["ppo_steps"]["type"], fields["ppo_steps"]["minimum"]) == ("integer", 1)
    assert (fields["learning_rate"]["type"], fields["learning_rate"]["minimum"]) == ("number", 0)
    assert "default" not in fields["seed"]


@pytest.mark.parametrize(
    ("parameters", "culprit"),
    [
        ({"recipe": "embeded"}, "recipe"),
        ({"ppo_steps": 0}, "ppo_steps"),
        ({"ppo_steps": 1.5}, "ppo_steps"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"kl_coef": -0.1}, "kl_coef"),
        ({"batch_size": 10**9}, "batch_size"),
        ({"overrides": ["pop.steps=3"]}, "overrides"),
        ({"overrides": ["ppo.steps"]}, "overrides"),
        ({"recipe_file": "/etc/passwd"}, "recipe_file"),
    ],
)
def test_a_bad_value_is_refused_before_there_is_a_run(deployed, parameters, culprit):
    client, _ = deployed
    deployment = client.read_deployment_by_name("rlhf/train-on-demand")
    with pytest.raises(PrefectHTTPStatusError) as refusal:
        client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    assert refusal.value.response.status_code == 409
    assert culprit in refusal.value.response.text


def test_filled_and_empty_fields_are_taken(deployed):
    client, _ = deployed
    deployment = client.read_deployment_by_name("rlhf/train-on-demand")
    given = {"recipe": "embedded", "ppo_steps": 3, "learning_rate": 1e-5, "seed": None, "overrides": ["ppo.lam=0.9"]}
    run = client.create_flow_run_from_deployment(deployment.id, parameters=given)
    assert run.parameters["ppo_steps"] == 3
    client.delete_flow_run(run.id)


def test_deployments_of_earlier_names_go_unless_something_depends_on_them(deployed):
    client, _ = deployed
    flows = {name: client.create_flow_from_name(name) for name in ("rlhf", "compare", "collect")}

    def earlier(flow: str, **settings: object) -> object:
        entry = {"entrypoint": f"flows/cli/worker.py:{flow}", "work_pool_name": "rlhf"} | settings
        return client.create_deployment(flow_id=flows[flow], name="on-demand", **entry)

    earlier("compare")
    earlier("collect", entrypoint="mine.py:collect")  # somebody's own
    retried = client.create_flow_run_from_deployment(earlier("rlhf"))
    lines = remove_renamed(client)
    assert [line.partition(";")[0] for line in lines] == [
        "deployment rlhf/on-demand is now rlhf/train-on-demand",
        "deployment compare/on-demand is now compare/compare-versions",
    ]
    assert "stays, for its runs that haven't finished or can be retried" in lines[0]
    assert "prefect deployment delete rlhf/on-demand" in lines[0]
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("compare/on-demand")
    assert client.read_deployment_by_name("collect/on-demand").entrypoint == "mine.py:collect"

    client.set_flow_run_state(retried.id, Completed(), force=True)
    assert "the old one was removed" in remove_renamed(client)[0]
    assert client.read_flow_run(retried.id).name == retried.name  # its runs stay
    assert remove_renamed(client) == []


def test_the_old_runs_flow_cleans_the_run_folder(deployed, tmp_path, monkeypatch, mlflow_store):
    from flows.retention import retention

    with mlflow_store(tmp_path):
        monkeypatch.setenv("RLHF_RUN_DIR", str(tmp_path / "runs"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        old = tmp_path / "runs" / "work" / "0" / "ppo"
        old.mkdir(parents=True)
        (old / "model").write_text("x" * 10)
        for dry_run in (True, False):
            assert old.exists()
            record = retention(newest=0, days=0, only=["work"], dry_run=dry_run)
            assert [(piece["kind"], piece["bytes"]) for piece in record["removed"]] == [("work", 10)]
        assert not old.exists()
