"""MLflow around a pipeline run: one parent run, one child run a stage, and stages that are paid for once.

A stage's outputs lie in a folder named after a key: the hash of its settings, of the content of its inputs, of the
library code it uses and of the libraries' versions. Where that folder holds a finished record, the work is reused:
the child run exists all the same, tagged `reused` and pointing to the run that did the work.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.entities import Run
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from pydantic import BaseModel

import rlhf_lib
from rlhf_lib.credentials import redact
from rlhf_lib.evaluation.figures import flat_figures
from rlhf_lib.recipe import Recipe, flatten

EXPERIMENT = "rlhf"
RECORD = "record.json"
HEADLINES = ("reward_model", "ppo", "reward", "perplexity", "diversity")
_LIBRARIES = ("torch", "transformers", "trl", "datasets", "peft", "tokenizers")


@dataclass
class Stage:
    """What a task works with: its child run, its folder, and the record it fills and returns (small and JSON)."""

    name: str
    run: Run
    folder: Path
    reused: bool = False
    record: dict[str, Any] = field(default_factory=dict)

    def log_metrics(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        """Log to the child run; figures that don't apply (None) are left out, never 0."""
        mlflow.log_metrics(
            {k: float(v) for k, v in metrics.items() if v is not None}, step=step, run_id=self.run.info.run_id
        )


def content_key(*parts: Any) -> str:
    """16 hex digits that change with any of the parts (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_key(*packages: str) -> str:
    """Hash of the sources of rlhf_lib's named sub-packages and modules, and of the versions of the libraries below."""
    root = Path(rlhf_lib.__file__).parent
    digest = hashlib.sha256()
    for package in sorted(packages):
        path = root / package
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
            digest.update(source.read_bytes())
    digest.update(repr([(name, version(name)) for name in _LIBRARIES]).encode())
    return digest.hexdigest()[:16]


class PipelineRun(BaseModel):
    """What every task is told of the run it belongs to."""

    run_dir: str
    parent_run_id: str
    fresh: bool = False

    def finish(self, record: dict[str, Any]) -> None:
        """The run's record and headline figures to the parent, under names that are the same in every recipe."""
        mlflow.log_dict(record, "summary.json", run_id=self.parent_run_id)
        mlflow.log_metrics(headline(record), run_id=self.parent_run_id)
        if record["model"]:
            for key, value in record["model"].items():
                mlflow.MlflowClient().set_tag(self.parent_run_id, f"model.{key}", value)


@contextmanager
def pipeline_run(
    recipe: Recipe, run_dir: str, *, fresh: bool = False, tags: Mapping[str, Any] | None = None
) -> Iterator[PipelineRun]:
    """Open the parent run: the flattened recipe as params; recipe, git commit and the given tags as tags."""
    _quiet_logs()
    use_experiment(run_dir)
    known = {"recipe": recipe.name, "git_commit": git_commit()} | dict(tags or {})
    known = {key: redact(str(value)) for key, value in known.items() if value is not None}
    with mlflow.start_run(run_name=recipe.name, tags=known) as parent:
        mlflow.log_params({k: _shorten(redact(str(v))) for k, v in flatten(recipe).items()})
        mlflow.log_text(redact(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)), "recipe.yaml")
        try:
            yield PipelineRun(run_dir=run_dir, parent_run_id=parent.info.run_id, fresh=fresh)
        except Exception as error:
            mlflow.set_tag("failure", redact(str(error))[:5000])
            raise


def use_experiment(run_dir: str) -> None:
    """The experiment that all runs go to; on an embedded store its artifacts lie in the run folder."""
    if mlflow.get_experiment_by_name(EXPERIMENT) is None:
        local = not mlflow.get_tracking_uri().startswith("http")
        where = (Path(run_dir).absolute() / "artifacts").as_uri() if local else None
        mlflow.create_experiment(EXPERIMENT, artifact_location=where)
    mlflow.set_experiment(EXPERIMENT)


def headline(record: Mapping[str, Any]) -> dict[str, float]:
    """The parent's metrics: `reward/delta`, `perplexity/policy`, ...; what doesn't apply is left out."""
    return flat_figures({section: record[section] or {} for section in HEADLINES})


def git_commit() -> str | None:
    """The commit of the project's checkout, with -dirty where files differ; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def cover(error: BaseException) -> None:
    """Take secrets out of an error's message, in place: Prefect stores it with the state of task and flow."""
    error.args = tuple(redact(part) if isinstance(part, str) else part for part in error.args)
    if isinstance(message := getattr(error, "message", None), str):
        error.message = redact(message)  # type: ignore[attr-defined]


def _shorten(text: str) -> str:
    return text if len(text) <= 500 else f"{text[:497]}..."


def _quiet_logs() -> None:
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.models.signature"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def stage(name: str, run: PipelineRun, *, key: str | None = None) -> Iterator[Stage]:
    """Open the child run of a stage under the parent run.

    With a `key` the stage is reusable: its folder is `RUN_DIR/stages/NAME-KEY`. If a finished record is there the
    caller finds `stage.reused` true and `stage.record` filled, and should return it at once. Otherwise the caller
    works in `stage.folder`, emptied first; the record written last says that the work is whole. Without a key the
    folder is `RUN_DIR/work/PARENT/NAME`.
    """
    logger = run_logger()
    root = Path(run.run_dir)
    if key:
        key = content_key(key, Path(__file__).with_name(f"{name}.py").read_text())
    with mlflow.start_run(run_name=name, nested=True, parent_run_id=run.parent_run_id, tags={"stage": name}) as child:
        final = root / "stages" / f"{name}-{key}" if key else root / "work" / run.parent_run_id / name
        if key and not run.fresh and (final / RECORD).is_file():
            record = json.loads((final / RECORD).read_text())
            source = record["mlflow_run_id"]
            link = mlflow_link(source)
            mlflow.set_tags({"reused": "true", "reused_from": source, "reused_from_url": link, "stage_key": key})
            mlflow.log_metrics(record.get("metrics", {}))
            logger.info("%s: reused, nothing changed since run %s (%s)", name, source, link)
            yield Stage(name, child, final, True, record)
            return
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir(parents=True)
        mlflow.set_tags({"reused": "false"} | ({"stage_key": key} if key else {}))
        start = time.perf_counter()
        current = Stage(name, child, final)
        try:
            yield current
        except Exception as error:
            cover(error)
            raise
        finally:
            mlflow.log_metric("seconds", time.perf_counter() - start)
        if not current.record:
            raise RuntimeError(f"stage {name} ended without a record")
        current.record |= {"mlflow_run_id": child.info.run_id, "folder": str(final)}
        scratch = final / f"{RECORD}.tmp"
        scratch.write_text(json.dumps(current.record, indent=1))
        scratch.replace(final / RECORD)


def mlflow_link(run_id: str) -> str:
    """Where the run is to be seen: at the tracking server, or where `rlhf ui` shows an embedded store."""
    return _page(f"#/experiments/{mlflow.get_run(run_id).info.experiment_id}/runs/{run_id}")


def model_link(uri: str) -> str | None:
    """The page of a registered version, models:/NAME/VERSION; None for anything else."""
    if not uri.startswith("models:/"):
        return None
    name, _, version = uri.removeprefix("models:/").rpartition("/")
    return _page(f"#/models/{name}/versions/{version}")


def _page(path: str) -> str:
    uri = mlflow.get_tracking_uri()
    return f"{uri.rstrip('/') if uri.startswith('http') else 'http://127.0.0.1:5000'}/{path}"


def run_logger() -> logging.Logger | logging.LoggerAdapter:
    """Prefect's logger inside a flow or task run, Python's own where the functions are called without one."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("rlhf")
