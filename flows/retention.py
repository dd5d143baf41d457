"""Remove what old runs left behind.

rlhf clean --dry-run
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.orchestration.hooks import HOOKS
from flows.servers.environment import check, run_dir


@flow(name="retention", flow_run_name="clean-old-runs", persist_result=False, result_serializer="json", **HOOKS)
def retention(
    newest: int | None = None, days: float | None = None, only: list[str] | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """Remove what old runs left behind, as `retention` in the run folder's settings.yaml says. What registered versions
    need stays, and so does what live runs use.

    Args:
        newest: how many finished runs of each recipe to keep, newest first; empty: as the settings say.
        days: keep runs younger than this; empty: as the settings say.
        only: which of checkpoints, work, artifacts and runs; empty: those that the settings name.
        dry_run: list what would go, and remove nothing.
    """
    from tasks.retention.clean import clean_task, raise_failures
    from tasks.retention.settings import load

    check()
    policy = load(run_dir()).retention.changed(newest, days, only or None)
    record = clean_task(run_dir(), policy, dry_run=dry_run)
    rows = [*record["removed"], *record["failed"]]
    create_table_artifact(rows, key="removed", description=f"{record['bytes']} bytes")
    raise_failures(record)
    return record
