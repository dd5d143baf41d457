"""The removal of what old runs left behind: `rlhf clean`.

First all that may go is found, then it is removed piece by piece. Killed in the middle, the next call goes on: a
folder is gone from its place at one stroke, and MLflow runs are marked before the first of their artifacts goes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
from mlflow.entities import LoggedModel, Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from prefect import task

from rlhf_lib.errors import EnvironmentFault
from tasks.retention.found import Found, Needed, find_needed, find_runs, staying
from tasks.retention.settings import Retention
from tasks.stage.options import OPTIONS
from tasks.tracking import run_folder, run_logger
from tasks.tracking.runs import close_abandoned

MARK = "retention"  # tag of an MLflow run: what of it is being removed, or was
_RUN, _ARTIFACTS, _DONE = "removing run", "removing artifacts", "artifacts removed"


@dataclass
class Piece:
    """Something that may go. `kind`: as in the settings. `stage`: whose folder it is, if it is one stage's."""

    kind: str
    run: str
    bytes: int
    remove: Callable[[], bool]  # False: something has come to need it meanwhile
    stage: str | None = None


def clean(root: Path, policy: Retention, *, dry_run: bool = False) -> dict[str, Any]:
    """Remove what the policy doesn't keep.

    Never goes what a registered version needs, or what a live run made or uses. Returns `removed` (kind, run, stage and
    bytes of each piece), `bytes`, `failed` (the same with the reason) and `kept`: how many runs are live, and how many
    have made what a version needs.
    """
    root = root.resolve()
    if dry_run:
        plan, kept = _plan(root, policy)
        return _told(plan, [], kept)
    with run_folder.file_lock(root, "retention"):
        run_folder.tidy(root)
        close_abandoned(root)
        plan, kept = _plan(root, policy)
        removed, failed = [], []
        for piece in plan:
            try:
                if piece.remove():
                    removed.append(piece)
                    run_logger().info("clean: removed %s of %s, %d bytes", piece.kind, piece.run, piece.bytes)
            except Exception as error:  # a store may raise anything; the other pieces can still go
                failed.append((piece, " ".join(str(error).split())[:300]))
                run_logger().warning("clean: %s of %s can't be removed: %s", piece.kind, piece.run, error)
        run_folder.tidy(root)
    return _told(removed, failed, kept)


def raise_failures(record: dict[str, Any]) -> None:
    """Raise EnvironmentFault if something could not be removed."""
    if failed := record["failed"]:
        raise EnvironmentFault(
            f"{len(failed)} of {len(failed) + len(record['removed'])} pieces could not be removed; the first is "
            f"{failed[0]['kind']} of {failed[0]['run']}: {failed[0]['reason']}"
        )


clean_task = task(name="clean", **OPTIONS)(clean)


def _told(removed: list[Piece], failed: list[tuple[Piece, str]], kept: dict[str, int]) -> dict[str, Any]:
    return {
        "removed": [_described(piece) for piece in removed],
        "bytes": sum(piece.bytes for piece in removed),
        "failed": [_described(piece) | {"reason": reason} for piece, reason in failed],
        "kept": kept,
    }


def _described(piece: Piece) -> dict[str, Any]:
    return {"kind": piece.kind, "run": piece.run, "stage": piece.stage, "bytes": piece.bytes}


def _plan(root: Path, policy: Retention) -> tuple[list[Piece], dict[str, int]]:
    found = find_runs(root)
    needed = find_needed(found)
    versioned = {run.id for run in found.values() if needed.runs & {r.info.run_id for r in run.tree}}

    def goes(run: Found, kind: str) -> bool:
        keep = getattr(policy, kind)
        begun = {"runs": (_RUN,), "artifacts": (_RUN, _ARTIFACTS)}.get(kind, ())
        if run.record is not None and run.record.data.tags.get(MARK) in begun:
            return not run.live
        return keep is not None and not run.live and keep.lets_go(run.age, run.rank)

    stay = {run.id for run in found.values() if run.id in versioned or not goes(run, "runs")}
    while True:
        records = set(found) - staying(found, stay)
        plan, held = _folders(root, found, needed, records, goes)
        if not held & records:
            break
        stay |= held  # a run whose files another one still uses
    plan += _unfinished(root, found, policy)
    for run in sorted(found.values(), key=lambda run: run.ended):
        if run.record is not None and run.id in records:
            plan.append(_record(root, run, needed))
        elif run.record is not None and goes(run, "artifacts") and not _emptied(run):
            plan += _artifacts(root, run, needed)
    return plan, {"live": sum(run.live for run in found.values()), "versions": len(versioned)}


# ---------------------------------------------------------------- the run folder


def _folders(
    root: Path, found: dict[str, Found], needed: Needed, records: set[str], goes: Callable[[Found, str], bool]
) -> tuple[list[Piece], set[str]]:
    """Stages' folders, or the checkpoints in them, that none of the runs which made or reused them keeps; and the ids
    of the runs that made those which stay."""
    plan, held = [], set()
    for folder, names in sorted(run_folder.stage_folders(root).items()):
        users = [found[name] for name in names if name in found]
        if len(users) < len(names):  # a run that has begun meanwhile
            held.add(folder.parent.name)
            continue
        owner = found.get(folder.parent.name, users[0])
        checkpoints = folder / "checkpoints"
        if all((goes(run, "work") or run.id in records) and run.id not in needed.folders for run in users):
            plan.append(Piece("work", owner.name, run_folder.size(folder), _Folder(root, folder), folder.name))
            continue
        held.add(folder.parent.name)
        if checkpoints.is_dir() and all(goes(run, "checkpoints") for run in users):
            size = run_folder.size(checkpoints)
            plan.append(Piece("checkpoints", owner.name, size, _Folder(root, folder, checkpoints), folder.name))
    return plan, held


def _unfinished(root: Path, found: dict[str, Found], policy: Retention) -> list[Piece]:
    """PPO's checkpoints of runs that were interrupted and not started again, by their age alone. A live run before its
    PPO may be about to resume from any of them."""
    if any(run.live and not (root / "work" / run.id / "ppo").exists() for run in found.values()):
        return []
    plan = []
    for folder in sorted((root / "checkpoints").glob("*")):
        run = Found(folder.name, None, run_folder.changed(folder), live=False)
        if policy.checkpoints is not None and policy.checkpoints.lets_go(run.age, None):
            lock = f"ppo-{folder.name[:16]}"
            plan.append(
                Piece("checkpoints", f"{run.name}, interrupted", run_folder.size(folder), _Locked(root, folder, lock))
            )
    return plan


@dataclass
class _Locked:
    """Removes a folder while nobody holds the lock."""

    root: Path
    folder: Path
    lock: str

    def __call__(self) -> bool:
        with run_folder.unless_locked(self.root, self.lock) as free:
            if free and self.folder.is_dir():
                run_folder.discard(self.root, self.folder)
            return free


@dataclass
class _Folder:
    """Removes a stage's folder, or a part of it, unless a run has begun to use it."""

    root: Path
    stage: Path
    part: Path | None = None

    def __call__(self) -> bool:
        record = run_folder.finished(self.stage) or {}
        # with the lock of its key no run can begin to reuse it, and with that of its run none can be tried again
        with (
            run_folder.unless_running(self.root, self.stage.parent.name) as idle,
            run_folder.unless_locked(self.root, f"{self.stage.name}-{record.get('stage_key', '')}") as free,
        ):
            users = run_folder.stage_folders(self.root).get(self.stage, set()) - {self.stage.parent.name}
            if not idle or not free or any(run_folder.is_running(self.root, user) for user in users):
                return False
            run_folder.discard(self.root, self.part or self.stage)
            return True


# ---------------------------------------------------------------- MLflow


def _record(root: Path, run: Found, needed: Needed) -> Piece:
    """The run's MLflow runs with all that they logged, and its folder."""
    assert run.record is not None
    models = [model for model in run.models if model.model_id not in needed.models]
    client, parent = mlflow.MlflowClient(), run.record

    def remove() -> bool:
        with run_folder.unless_running(root, run.id) as idle:
            stages = [
                place for place in (root / "work" / run.id).glob("*") if place.is_dir() and not place.is_symlink()
            ]
            if not idle or stages:
                return False
            client.set_tag(parent.info.run_id, MARK, _RUN)
            for model in models:
                _remove_model(model)
            for each in run.tree:  # the parent last: by its tag the next call knows what to go on with
                _remove_artifacts(each)
                client.delete_run(each.info.run_id)
            if (folder := root / "work" / run.id).is_dir():
                run_folder.discard(root, folder)
        return True

    return Piece("runs", run.name, _logged_bytes(run.tree, models), remove)


def _artifacts(root: Path, run: Found, needed: Needed) -> list[Piece]:
    """The artifacts and unregistered models of the run and its stages, their metrics staying; none if nothing would
    go."""
    assert run.record is not None
    models = [model for model in run.models if model.model_id not in needed.models]
    runs = [each for each in run.tree if each.info.run_id not in needed.runs]
    whole = (runs, models) == (run.tree, run.models)
    client, parent = mlflow.MlflowClient(), run.record.info.run_id

    def remove() -> bool:
        with run_folder.unless_running(root, run.id) as idle:
            if not idle:
                return False
            client.set_tag(parent, MARK, _ARTIFACTS)
            for model in models:
                _remove_model(model)
            for each in runs:
                _remove_artifacts(each)
            done = f"{_DONE} {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
            client.set_tag(parent, MARK, done if whole else f"unneeded {done}")
        return True

    piece = Piece("artifacts", run.name, _logged_bytes(runs, models), remove)
    return [piece] if piece.bytes or models else []


def _emptied(run: Found) -> bool:
    """Whether all its artifacts were removed since it ended."""
    assert run.record is not None
    said, _, when = run.record.data.tags.get(MARK, "").rpartition(" ")
    return said == _DONE and when >= f"{datetime.fromtimestamp(run.ended, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _remove_artifacts(run: Run) -> None:
    _remove_stored(str(run.info.artifact_uri))


def _remove_model(model: LoggedModel) -> None:
    _remove_stored(model.artifact_location)
    mlflow.MlflowClient().delete_logged_model(model.model_id)


def _remove_stored(place: str) -> None:
    """Remove all that is stored there, as `mlflow gc` does for deleted runs."""
    store: Any = get_artifact_repository(place)
    store.delete_artifacts()
    if place.startswith("file:"):
        with suppress(OSError):  # ID/artifacts is gone, and ID is empty
            Path(unquote(urlparse(place).path)).parent.rmdir()


def _logged_bytes(runs: list[Run], models: list[LoggedModel]) -> int:
    places = [str(run.info.artifact_uri) for run in runs] + [model.artifact_location for model in models]
    return sum(_bytes(get_artifact_repository(place)) for place in places)


def _bytes(repository: Any, folder: str | None = None) -> int:
    """Of all files below a folder of an artifact store."""
    listed = repository.list_artifacts(folder)
    return sum(_bytes(repository, item.path) if item.is_dir else item.file_size or 0 for item in listed)
