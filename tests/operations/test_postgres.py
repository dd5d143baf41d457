"""The production set-up for real: Prefect and MLflow on PostgreSQL with logins, as docs/how-to/production.md has it.

make test-backends; RLHF_TEST_RUNS sets how many flow runs go at once (10).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
import requests
from postgres import ROOT, postgres, services

from flows.servers import environment
from rlhf_lib.errors import EnvironmentFault
from tests.end_to_end.test_pipeline import STAGES, overrides

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
RUNS = int(os.environ.get("RLHF_TEST_RUNS", "10"))
TROUBLE = (
    "database is locked",
    "deadlock detected",
    "too many clients",
    "too many connections",
    "QueuePool limit",
    "unsupported Unicode escape",  # a NUL in a model's answer
)
# what a user might have in the environment of a run, and no store or log may hold
PLANTED = {
    "HF_TOKEN": "hf_PLANTEDabcdefghijklmnopqr",
    "AWS_SECRET_ACCESS_KEY": "PLANTED/aws+secret",
    "MLFLOW_S3_ENDPOINT_URL": "https://key:PLANTED-s3@s3.example",
    "OPENAI_API_KEY": "sk-PLANTED-abcdefghijklmnop",
}
LEAKY = """
import logging, os

def score(queries, responses):
    logging.getLogger("leaky").warning("as %s", os.environ["HF_TOKEN"])
    raise ValueError(f"no answer from https://me:PLANTED-url@scores.example with {os.environ['OPENAI_API_KEY']}")
"""
# a deployment on a process worker: fires by itself every ten seconds, its token from a Prefect Secret block
SCHEDULED = """
import sys
from datetime import timedelta
from prefect.blocks.system import Secret
from flows.rlhf import rlhf

Secret(value="hf_PLANTEDblockabcdefghijkl").save("hub-token")
rlhf.from_source(source=sys.argv[1], entrypoint="flows/rlhf.py:rlhf").deploy(
    name="scheduled", work_pool_name="rlhf", interval=timedelta(seconds=10), concurrency_limit=1,
    parameters={"overrides": sys.argv[2:]}, ignore_warnings=True, print_next_steps=False,
    job_variables={"env": {"HF_TOKEN": "{{ prefect.blocks.secret.hub-token }}"}},
)
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")
    with postgres(folder) as server, services(folder, server) as made:
        yield made


def options(settings):
    return [word for setting in settings for word in ("--set", setting)]


def run(live, name, settings, **environment):
    """`rlhf run embedded` as a user starts it; its output goes to the folder's logs."""
    log = (live.folder / f"{name}.log").open("w")
    command = [sys.executable, "-m", "flows.cli", "run", "embedded", "--summary", str(live.folder / f"{name}.json")]
    variables = live.client | environment
    return subprocess.Popen([*command, *options(settings)], cwd=live.folder, env=variables, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def client(live):
    """MLflow and Prefect as the project's user, from this process."""
    prefect = requests.Session()
    prefect.auth = ("operator", live.secrets["OPERATOR_PASSWORD"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", "rlhf")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", live.secrets["RUNS_PASSWORD"])
        yield SimpleNamespace(mlflow=mlflow.MlflowClient(live.mlflow), prefect=prefect)


def flow_runs(live, client, **wanted):
    found = client.prefect.post(
        f"{live.prefect}/flow_runs/filter", json={"flow_runs": wanted, "limit": 200}, timeout=60
    )
    found.raise_for_status()
    return found.json()


# ---------------------------------------------------------------- logins


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "MLflow server at .* refuses requests without a login .401.: set MLFLOW_TRACKING_USERNAME"),
        (
            {"MLFLOW_TRACKING_USERNAME": "rlhf", "MLFLOW_TRACKING_PASSWORD": "wrong"},
            "MLflow server .* refuses the login",
        ),
        (
            {"MLFLOW": "right"},
            "Prefect server at .* refuses requests without a login .401.: set PREFECT_API_AUTH_STRING",
        ),
        ({"MLFLOW": "right", "PREFECT_API_AUTH_STRING": "operator:wrong"}, "Prefect server .* refuses the login"),
        ({"MLFLOW": "right", "PREFECT": "right"}, None),
    ],
)
def test_a_refused_login_is_told_with_its_mend(given, message, live, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("MLFLOW_TRACKING_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    given = dict(given)
    if given.pop("MLFLOW", None):
        given |= {"MLFLOW_TRACKING_USERNAME": "rlhf", "MLFLOW_TRACKING_PASSWORD": live.secrets["RUNS_PASSWORD"]}
    if given.pop("PREFECT", None):
        given["PREFECT_API_AUTH_STRING"] = f"operator:{live.secrets['OPERATOR_PASSWORD']}"
    places = {"MLFLOW_TRACKING_URI": live.mlflow, "PREFECT_API_URL": live.prefect, "RLHF_RUN_DIR": str(tmp_path)}
    for name, value in (given | places).items():
        monkeypatch.setenv(name, value)
    if message is None:
        environment.check()
    else:
        with pytest.raises(EnvironmentFault, match=message):
            environment.check()


def test_a_database_that_refuses_is_told_with_its_mend(live, monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_RUN_DIR", str(tmp_path))
    uri = f"postgresql://mlflow:WRONG-WORD@127.0.0.1:{live.postgres.port}/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(EnvironmentFault, match=r"MLflow's database .* can't be opened .*password") as caught:
        environment.check()
    assert "WRONG-WORD" not in str(caught.value)


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def first(live):
    """The whole pipeline, with secrets all around it, one in the tracking server's address."""
    login = live.mlflow.replace("://", f"://rlhf:{live.secrets['RUNS_PASSWORD']}@")
    process = run(live, "first", overrides(), **PLANTED, MLFLOW_TRACKING_URI=login)
    assert process.wait(1200) == 0, (live.folder / "first.log").read_text()[-5000:]
    return json.loads((live.folder / "first.json").read_text())


def test_the_whole_pipeline(first, live, client):
    parent = client.mlflow.get_run(first["mlflow_run_id"])
    children = client.mlflow.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'", order_by=["start_time"]
    )
    assert [child.data.tags["stage"] for child in children] == STAGES
    assert {child.info.status for child in (parent, *children)} == {"FINISHED"}
    assert client.mlflow.get_model_version_by_alias("embedded", "champion").version == first["model"]["version"]
    flow_run = client.prefect.get(f"{live.prefect}/flow_runs/{parent.data.tags['prefect_flow_run_id']}", timeout=60)
    assert flow_run.json()["state_type"] == "COMPLETED"
    assert live.postgres.sql("SELECT count(*) FROM flow_run", "prefect").strip() == "1"
    page = f"this run in MLflow on {live.mlflow}/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    assert page in (live.folder / "first.log").read_text()
    assert int(live.postgres.sql("SELECT count(*) FROM runs", "mlflow")) == 1 + len(STAGES)


def test_flow_runs_at_once(first, live, client):
    """Each with another KL coefficient: the first stages are shared, PPO and what follows are its own."""
    processes = [run(live, f"at-once-{i}", overrides(ppo__kl_coef=0.01 * (i + 1))) for i in range(RUNS)]
    codes = [process.wait(1500) for process in processes]
    assert codes == [0] * RUNS, [
        (live.folder / f"at-once-{i}.log").read_text()[-2000:] for i in range(RUNS) if codes[i]
    ]
    records = [json.loads((live.folder / f"at-once-{i}.json").read_text()) for i in range(RUNS)]
    assert len({record["mlflow_run_id"] for record in records}) == RUNS
    versions = sorted(int(record["model"]["version"]) for record in records)
    assert versions == list(range(2, RUNS + 2))  # each registered once
    for record in records:
        history = client.mlflow.search_runs(
            [client.mlflow.get_run(record["mlflow_run_id"]).info.experiment_id],
            f"tags.mlflow.parentRunId = '{record['mlflow_run_id']}' and tags.stage = 'ppo'",
        )
        points = client.mlflow.get_metric_history(history[0].info.run_id, "objective/kl")
        assert [point.step for point in points] == [1, 2, 3]
    states = {flow_run["state_type"] for flow_run in flow_runs(live, client)}
    assert states == {"COMPLETED"}
    assert not [words for words in TROUBLE if words in live.logs()]


def test_versions_are_compared_and_listed(first, live, client):
    versions = ["models:/embedded@champion", "models:/embedded@challenger"]
    for words in (["compare", "reference", *versions, "--prompts", "8"], ["models", "embedded"]):
        command = [sys.executable, "-m", "flows.cli", *words]
        result = subprocess.run(command, cwd=live.folder, env=live.client, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    assert "champion" in result.stdout
    compared = flow_runs(live, client, name={"like_": "compare"})
    assert [run["state_type"] for run in compared] == ["COMPLETED"]


def test_a_schedule_fires_by_itself(first, live, client):
    start = [sys.executable, "-m", "prefect"]
    pool = [*start, "work-pool", "create", "rlhf", "--type", "process"]
    subprocess.run(pool, env=live.client, cwd=ROOT, check=True, capture_output=True)
    settings = overrides(ppo__steps=1, evaluation__prompts=8)
    script = live.folder / "deploy_scheduled.py"
    script.write_text(SCHEDULED)
    deploy = [sys.executable, str(script), str(ROOT), *settings]
    result = subprocess.run(deploy, env=live.client, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    worker = live.start("worker", live.units["worker"], live.client)
    try:
        deadline, done = time.monotonic() + 1200, []
        while not done and time.monotonic() < deadline:
            time.sleep(3)
            fired = [r for r in flow_runs(live, client, deployment_id={"is_null_": False}) if r["auto_scheduled"]]
            assert not [r for r in fired if r["state_type"] in ("FAILED", "CRASHED")], live.logs()[-8000:]
            done = [r for r in fired if r["state_type"] == "COMPLETED"]
        assert done, live.logs()[-8000:]
    finally:
        deployment = client.prefect.get(f"{live.prefect}/deployments/name/rlhf/scheduled", timeout=60).json()
        client.prefect.delete(f"{live.prefect}/deployments/{deployment['id']}", timeout=60)
        worker.terminate()
        worker.wait(120)
    tagged = client.mlflow.search_runs(
        [client.mlflow.get_experiment_by_name("rlhf").experiment_id],
        f"tags.prefect_flow_run_id = '{done[0]['id']}'",
    )
    assert [run.info.status for run in tagged] == ["FINISHED"]


# ---------------------------------------------------------------- secrets


def test_no_secret_is_stored_or_told(first, live):
    """After a run that failed of a reward which tells all it knows, and whatever ran before."""
    (live.folder / "leaky.py").write_text(LEAKY)
    leak = ["reward.kind=function", "reward.terms=null", "reward.function=leaky:score"]
    leak += ["reward.checks.min_accuracy=null"]
    settings = [s for s in overrides() if not s.startswith("reward.")]
    process = run(live, "leaky", [*settings, *leak], **PLANTED, PYTHONPATH=str(live.folder))
    assert process.wait(600) != 0
    told = live.logs()
    assert "no answer from https://me:***@scores.example" in told
    places = {
        "logs and terminal": told,
        "MLflow's database": live.postgres.dump("mlflow"),
        "Prefect's database": live.postgres.dump("prefect"),
    }
    assert "no answer from https://me:***@scores.example" in places["MLflow's database"]
    assert "no answer from https://me:***@scores.example" in places["Prefect's database"]
    for root in (live.folder / "var/artifacts", live.folder / "var/runs"):
        places |= {str(file): file.read_bytes().decode("latin-1") for file in root.rglob("*") if file.is_file()}
    found = [
        (place, word) for place, text in places.items() for word in ("PLANTED", *live.secrets.values()) if word in text
    ]
    assert not found
    assert any(Path(place).name == "recipe.yaml" for place in places)


# ---------------------------------------------------------------- old runs


def test_what_is_old_goes_through_the_server_and_the_champion_stays(first, live, client):
    """As the user that runs have, who has no access to the store but by the server. After the other tests."""
    clean = [
        sys.executable,
        "-m",
        "flows.cli",
        "clean",
        "--newest",
        "0",
        "--days",
        "0",
        "--only",
        "work,artifacts,runs",
    ]
    result = subprocess.run(clean, cwd=live.folder, env=live.client, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 live runs" in result.stdout
    parent = first["mlflow_run_id"]
    experiment = client.mlflow.get_run(parent).info.experiment_id
    ppo = client.mlflow.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}' and tags.stage = 'ppo'")[0]
    assert ppo.data.metrics["objective/kl"] is not None
    assert not client.mlflow.list_artifacts(ppo.info.run_id)
    stored = live.folder / "var/artifacts" / experiment / ppo.info.run_id
    assert not [file for file in stored.rglob("*") if file.is_file()]
    assert not list((live.folder / "var/runs/work" / parent).iterdir())
    # compare loads the champion, its reference and its reward model
    compare = [sys.executable, "-m", "flows.cli", "compare", "reference", "models:/embedded@champion", "--prompts", "4"]
    result = subprocess.run(compare, cwd=live.folder, env=live.client, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
