"""What Prefect hears of a champion: an event each time that a version becomes one, or a run's version does not, which
an automation can answer (deploy/automations.yaml)."""

from __future__ import annotations

from typing import Any, Literal

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from prefect.settings import PREFECT_API_URL

from tasks.registry.versions import uri_of, version_of
from tasks.tracking.runs import mlflow_link

Happened = Literal["promoted", "rolled-back", "refused", "waiting"]
# of the tags that a version has its metrics in
FIGURES = (
    "reward/reference",
    "reward/policy",
    "reward/delta",
    "reward/ci95_low",
    "reward/ci95_high",
    "reward/win_rate",
    "kl",
    "perplexity/reference",
    "perplexity/policy",
    "diversity/distinct_2_policy",
    "duel/delta",
    "duel/ci95_low",
    "duel/ci95_high",
)


def tell(happened: Happened, name: str, version: str, *, champion: str | None, why: str, who: str) -> None:
    """Emit `rlhf.model.HAPPENED` of the resource `rlhf.model.NAME`, related to the flow run that made the version.

    `champion`: the version that was champion before (promoted, rolled-back) or still is (refused: its gates failed;
    waiting: they passed, and a person decides); None: there is none. Does nothing where no Prefect server is known. It
    is sent by Prefect's own thread, and one that can't be delivered is logged there: nothing is raised, since what the
    event tells of has happened.
    """
    if PREFECT_API_URL.value() is None:
        return
    from prefect.events import emit_event

    made = version_of(f"models:/{name}/{version}")
    run, link = _made_by(made)
    emit_event(
        event=f"rlhf.model.{happened}",
        resource={
            "prefect.resource.id": f"rlhf.model.{name}",
            "prefect.resource.name": name,
            "rlhf.model.version": str(version),
        },
        related=[{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}]
        if run
        else [],
        payload=payload(made, champion) | {"why": why, "who": who, "mlflow_link": link},
    )


def payload(version: ModelVersion, champion: str | None) -> dict[str, Any]:
    """What the version's tags tell; null where one is missing. `compare_with`: the champion, else the version's own
    reference, in the form that `rlhf compare` takes."""
    tags = version.tags
    return {
        "name": version.name,
        "version": str(version.version),
        "model": uri_of(version),
        "champion": champion,
        "compare_with": f"models:/{version.name}/{champion}" if champion else "reference",
        "recipe": tags.get("recipe"),
        "mlflow_run_id": tags.get("parent_run_id"),
        "figures": {figure: float(tags[figure]) for figure in FIGURES if figure in tags},
    }


def _made_by(version: ModelVersion) -> tuple[str | None, str | None]:
    """(the flow run that made the version, its run's page in MLflow); None where that run is gone, or had none."""
    try:
        run = mlflow.get_run(version.tags["parent_run_id"])
    except (KeyError, MlflowException):
        return None, None
    return run.data.tags.get("prefect_flow_run_id"), mlflow_link(run.info.run_id)
