"""Finds what old runs left in MLflow and in the run folder, and what is still needed of it."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion

from tasks.registry import versions
from tasks.tracking import run_folder
from tasks.tracking.runs import EXPERIMENT

_PARENT, REUSED = "mlflow.parentRunId", "reused_from"
_FOLDER = re.compile(r"\bwork/([0-9a-f]{32})\b")
_MODEL = re.compile(r"\bmodels:/(m-[0-9a-f]+)")


@dataclass
class Found:
    """A pipeline, comparison or collection that was run in the run folder.

    `record`: its MLflow run, None if the store doesn't have it. `ended`: seconds since the epoch. `rank`: how many
    newer finished ones its recipe has; None for one that failed, was cancelled or was killed.
    """

    id: str
    record: Run | None
    ended: float
    live: bool
    rank: int | None = None
    children: list[Run] = field(default_factory=list)
    models: list[LoggedModel] = field(default_factory=list)

    @property
    def age(self) -> float:
        return time.time() - self.ended

    @property
    def tree(self) -> list[Run]:
        """Its MLflow runs, the parent last."""
        return [*self.children, *([self.record] if self.record else [])]

    @property
    def name(self) -> str:
        known = f"{self.record.info.run_name} ({self.id[:8]})" if self.record else self.id[:8]
        return f"{known}, {datetime.fromtimestamp(self.ended, UTC):%Y-%m-%d %H:%M} UTC"


@dataclass
class Needed:
    """What registered versions and live runs need. `runs`: MLflow runs, with their artifacts. `models`: logged models.
    `folders`: ids of runs whose stages' folders their recipes name."""

    runs: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)


def find_runs(root: Path) -> dict[str, Found]:
    """The runs of this run folder by id. Those of other folders on the same tracking server are left out."""
    work, client = root / "work", mlflow.MlflowClient()
    folders = {folder.name: folder for folder in work.iterdir()} if work.is_dir() else {}
    own = mlflow.get_tracking_uri() == f"sqlite:///{root}/mlflow.db"
    experiment = client.get_experiment_by_name(EXPERIMENT)
    kept = [experiment.experiment_id] if experiment else []
    records: list[Run] = mlflow.search_runs(kept, output_format="list") if kept else []
    found: dict[str, Found] = {}
    for record in records:
        run = record.info.run_id
        if _PARENT not in record.data.tags and (own or run in folders):
            ended = (record.info.end_time or record.info.start_time) / 1000
            found[run] = Found(run, record, ended, run_folder.is_running(root, run) or _begins(root, record))
    for run, folder in folders.items():
        if run not in found and folder.is_dir():
            found[run] = Found(run, None, run_folder.changed(folder), run_folder.is_running(root, run))
    owners = {run: run for run in found}
    for record in records:
        if (parent := record.data.tags.get(_PARENT)) in found:
            found[parent].children.append(record)
            owners[record.info.run_id] = parent
    for model in _logged_models(kept):
        if (owner := owners.get(model.source_run_id or "")) is not None:
            found[owner].models.append(model)
    _rank(found.values())
    return found


def _begins(root: Path, record: Run) -> bool:
    """Whether the run may just be starting: not ended, not marked as running yet, and less than a day old."""
    started = time.time() - record.info.start_time / 1000
    return record.info.status == "RUNNING" and not run_folder.is_marked(root, record.info.run_id) and started < 86400


def _rank(found: Iterable[Found]) -> None:
    seen: Counter[tuple[str | None, ...]] = Counter()
    for run in sorted(found, key=lambda run: -run.ended):
        if run.record is not None and run.record.info.status == "FINISHED" and not run.live:
            recipe = tuple(run.record.data.tags.get(tag) for tag in ("recipe", "stage"))
            run.rank = seen[recipe]
            seen[recipe] += 1


def _logged_models(experiments: list[str]) -> Iterator[LoggedModel]:
    client, token = mlflow.MlflowClient(), None
    while experiments:
        page = client.search_logged_models(experiments, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _versions() -> Iterator[ModelVersion]:
    client, token = mlflow.MlflowClient(), None
    while True:
        page = client.search_model_versions(page_token=token)
        yield from page
        if not (token := page.token):
            return


def find_needed(found: Mapping[str, Found]) -> Needed:
    """What may not go: all that every registered version is loaded, judged, compared and traced back with."""
    needed = Needed()
    recipes = [run.id for run in found.values() if run.live]
    for version in _versions():
        if model := versions.logged_model_of(version):
            needed.models.add(model)
        made_by = [version.run_id, version.tags.get("parent_run_id")]
        kept = (version.tags.get(kind, "") for kind in (versions.REFERENCE, versions.REWARD_MODEL))
        made_by += [uri.removeprefix("runs:/").partition("/")[0] for uri in kept if uri.startswith("runs:/")]
        needed.runs.update(filter(None, made_by))
        recipes += [version.tags.get("parent_run_id", "")]
    for run in recipes:
        record = found[run].record if run in found else None
        for value in record.data.params.values() if record else ():
            needed.folders.update(_FOLDER.findall(value))
            needed.models.update(_MODEL.findall(value))
    return needed


def staying(found: Mapping[str, Found], kept: Iterable[str]) -> set[str]:
    """These runs and all from which they reused a stage, directly or not."""
    owners = {child.info.run_id: run.id for run in found.values() for child in run.children}
    stay, look = set(), list(kept)
    while look:
        if (run := look.pop()) not in stay:
            stay.add(run)
            sources = (child.data.tags.get(REUSED) for child in found[run].children)
            look += [owners[source] for source in sources if source in owners]
    return stay
