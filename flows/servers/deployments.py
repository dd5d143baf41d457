"""What runs need on Prefect's server: the work pool, the concurrency limit and the deployments of prefect.yaml."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flows.servers import environment
from rlhf_lib.errors import EnvironmentFault

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

POOL, TAG = "rlhf", "gpu"
DESCRIPTION = "prefect.yaml"
_SHIPPED = Path(__file__).with_name(DESCRIPTION)  # in a checkout a link to the project's own
_ENTRY = "flows/cli/worker.py"
RENAMED = {  # deployments of earlier releases and what they are called now
    "rlhf/on-demand": "rlhf/train-on-demand",
    "compare/on-demand": "compare/compare-versions",
    "collect/on-demand": "collect/collect-responses",
}


def check_description() -> None:
    """Raise EnvironmentFault where nothing says what to deploy: a checkout's prefect.yaml is in another folder."""
    if not Path(DESCRIPTION).is_file() and _SHIPPED.is_symlink():
        raise EnvironmentFault(
            f"no {DESCRIPTION} here: run this in the project's folder, {_SHIPPED.resolve().parent}, or copy the file "
            "from there"
        )


def description() -> Path:
    """What to deploy: prefect.yaml in the working directory, else a copy of the one that the package came with, in the
    run folder, whose flows are the installed ones."""
    own = Path(DESCRIPTION)
    if own.is_file():
        return own
    copy = environment.run_dir() / "services" / DESCRIPTION
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(_SHIPPED.read_text().replace(_ENTRY, str(Path(__file__).parents[2] / _ENTRY)))
    print(f"no {DESCRIPTION} here: deploying this release's. To change schedules, copy {copy} here")
    return copy


def deploy() -> None:
    """Create the pool and the limit where they are missing, deploy what prefect.yaml describes, and remove the
    deployments that it once had under other names. Raises EnvironmentFault with Prefect's message."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        _create_pool_and_limit(client)
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        command += ["--prefect-file", str(description())]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if result.returncode:
            raise EnvironmentFault(f"prefect deploy --all failed:\n{result.stdout}")
        for line in remove_renamed(client):
            print(line)


def workers() -> set[str]:
    """Names of the pool's workers that Prefect has heard of; each start of a worker has another name."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return {worker.name for worker in client.read_workers_for_work_pool(POOL)}


def _create_pool_and_limit(client: SyncPrefectClient) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    try:  # whoever has set another limit keeps it
        client.read_concurrency_limit_by_tag(TAG)
    except ObjectNotFound:
        client.create_concurrency_limit(TAG, 1)


def remove_renamed(client: SyncPrefectClient) -> list[str]:
    """Delete deployments of RENAMED that nothing depends on, and return a line on each one found.

    One stays if it is somebody's own of that name, has a schedule, is named by an automation, or has runs that are
    unfinished or could be retried, for which Prefect needs their deployment.
    """
    from prefect.exceptions import ObjectNotFound

    lines = []
    for old, new in RENAMED.items():
        try:
            found = client.read_deployment_by_name(old)
        except ObjectNotFound:
            continue
        if found.entrypoint != f"{_ENTRY}:{old.partition('/')[0]}":
            continue
        if (reason := _needed(client, found)) is None:
            client.delete_deployment(found.id)
            lines.append(f"deployment {old} is now {new}; the old one was removed")
        else:
            lines.append(f"deployment {old} is now {new}; the old one stays, {reason}: prefect deployment delete {old}")
    return lines


def _needed(client: SyncPrefectClient, deployment: DeploymentResponse) -> str | None:
    """Why the deployment can't be deleted safely; None if it can."""
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    if deployment.schedules:
        return "since it has a schedule"
    if any(str(deployment.id) in automation.model_dump_json() for automation in client.read_automations()):
        return "since an automation names it"
    ended = FlowRunFilterStateType(not_any_=[StateType.COMPLETED, StateType.CANCELLED])
    others = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=ended)),
        limit=1,
    )
    return "for its runs that haven't finished or can be retried" if others else None
