"""What a promotion tells Prefect, read back from a real server."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import mlflow
from prefect import flow
from prefect.events.worker import EventsWorker
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from registered import make_recipe, own_store, policy_folders, register  # noqa: F401

from rlhf_lib.recipe import RegistrationConfig
from tasks.registry import champions
from tests.rlhf_lib.evaluation.test_promotion import figures

ROOT = Path(__file__).parents[3]


def heard(name, count):
    """The server's events of the registered model, oldest first, once there are `count` of them."""
    EventsWorker.drain_all()  # what was emitted is at the server; it stores events in batches
    wanted = {"filter": {"resource": {"id": [f"rlhf.model.{name}"]}, "order": "ASC"}, "limit": 50}
    for _ in range(300):
        answer = httpx.post(f"{PREFECT_API_URL.value()}/events/filter", json=wanted, timeout=60)
        if len(found := answer.raise_for_status().json()["events"]) >= count:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{len(found)} events of {name}, not {count}")


def test_each_change_of_champion_and_each_refusal_is_an_event(store, folders, prefect_server):
    gates = {"min_prompts": None}
    named = {"registration": {"name": "told", "gates": gates}}

    @flow
    def pipeline():
        mlflow.MlflowClient().set_tag(store.parent_run_id, "prefect_flow_run_id", flow_run.id)
        register(store, folders, folders["lettered"], recipe=make_recipe(**named))
        register(store, folders, folders["plain"], recipe=make_recipe(**named))  # fewer letters: loses to it
        waits = make_recipe(registration=RegistrationConfig(name="patient", promote=False, gates=gates))
        register(store, folders, folders["plain"], recipe=waits)
        return flow_run.id

    ran = pipeline()
    champions.promote("told", "2", "the samples are better")
    champions.rollback("told", "they were not")

    events = heard("told", 4)
    assert [event["event"].removeprefix("rlhf.model.") for event in events] == [
        "promoted",
        "refused",
        "promoted",
        "rolled-back",
    ]
    told = [event["payload"] for event in events]
    assert [(p["version"], p["champion"], p["compare_with"]) for p in told] == [
        ("1", None, "reference"),
        ("2", "1", "models:/told/1"),
        ("2", "1", "models:/told/1"),
        ("1", "2", "models:/told/2"),
    ]
    assert told[1]["why"].startswith("beats_champion: ")
    assert [p["why"] for p in told[2:]] == ["the samples are better", "they were not"]
    first = told[0]
    assert (first["name"], first["model"], first["recipe"]) == ("told", "models:/told/1", "letters")
    assert first["mlflow_run_id"] == store.parent_run_id
    assert store.parent_run_id in first["mlflow_link"]
    assert first["figures"] | {"reward/delta": 0.5, "reward/ci95_low": 0.3, "kl": 4.0} == first["figures"]
    assert told[1]["figures"]["duel/delta"] < 0
    for event in events:  # those by hand too, of which no flow run is the context
        related = {one["prefect.resource.id"]: one["prefect.resource.role"] for one in event["related"]}
        assert related[f"prefect.flow-run.{ran}"] == "flow-run"

    (waiting,) = heard("patient", 1)
    assert waiting["event"] == "rlhf.model.waiting"
    assert "registration.promote is false" in waiting["payload"]["why"]


def test_a_server_that_is_gone_does_not_undo_a_promotion(store, folders, prefect_server):
    register(store, folders, folders["plain"], evaluation=figures(kl=99.0))
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        promote = "from tasks.registry import champions; print(champions.promote('letters', '1', 'by hand'))"
        away = {"PREFECT_API_URL": f"http://127.0.0.1:{taken.getsockname()[1]}/api", "PYTHONPATH": str(ROOT)}
        settings = os.environ | away | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
        done = subprocess.run(
            [sys.executable, "-c", promote], env=settings, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    assert "version 1 promoted by hand: by hand" in done.stdout
    assert "Unable to connect" in done.stderr  # Prefect's own word, once
    assert dict(mlflow.MlflowClient().get_registered_model("letters").aliases) == {"challenger": 1, "champion": 1}
