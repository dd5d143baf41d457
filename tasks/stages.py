"""Stages: a child run in MLflow and a folder each, and paid for once.

A stage has a key: the hash of its settings, of the content of its inputs, of the library code that it uses and of the
libraries' versions. Where the run folder holds a finished one with that key, the work is reused: the child run exists
all the same, tagged `reused` and pointing to the run that did the work.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

import rlhf_lib
from tasks import run_folder
from tasks.full_disk import disk_full
from tasks.logger import run_logger
from tasks.outbox import Outbox
from tasks.tracking import PipelineRun, cover, mlflow_link

_LIBRARIES = ("torch", "transformers", "trl", "datasets", "peft", "tokenizers")
_LAST_WORDS = 5.0  # seconds that a stage which ends early waits for the tracking server: who cancels wants it gone


@dataclass
class Stage:
    """What a task works with: its child run, its folder, and the record it fills and returns (small and JSON)."""

    name: str
    run: Run
    folder: Path
    key: str
    reused: bool = False
    record: dict[str, Any] = field(default_factory=dict)
    outbox: Outbox | None = None

    def log_metrics(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        """Log to the child run, without waiting for it; figures that don't apply (None) are left out, never 0."""
        assert self.outbox is not None, "a reused stage has its metrics"
        self.outbox.metrics({name: value for name, value in metrics.items() if value is not None}, step)

    def later(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function that tells MLflow something, without waiting for it; see Outbox.call."""
        assert self.outbox is not None, "a reused stage has told all"
        self.outbox.call(partial(function, *args))


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


@contextmanager
def stage(name: str, run: PipelineRun, *, key: str, repeat: bool = False) -> Iterator[Stage]:
    """Open the child run of a stage under the parent run, its folder RUN_DIR/work/PARENT/NAME.

    If a finished stage has the key the caller finds `stage.reused` true and `stage.record` filled, and should return it
    at once. Otherwise the caller works in `stage.folder`, which is empty; the record written last says that the work is
    whole. Of two runs at once with the same key the second waits for the first.

    A stage that is to `repeat` is done anew by every run, except that one goes on from what another with the same key
    left when it did not finish. A run that is itself tried again finds all that it had done.
    """
    key = content_key(key, Path(__file__).with_name(f"{name}.py").read_text())
    root = Path(run.run_dir)
    own, shared = root / "work" / run.parent_run_id / name, root / ("unfinished" if repeat else "stages")
    known = shared / f"{name}-{key}"
    with run_folder.alone(root, known.name):
        record = run_folder.finished(own)
        if record and record.get("stage_key") == key:
            run_logger().info("%s: done before this run was interrupted", name)
            yield Stage(name, mlflow.get_run(record["mlflow_run_id"]), own, key, True, record)
            return
        tags = {"stage": name, "stage_key": key}
        with mlflow.start_run(run_name=name, nested=True, parent_run_id=run.parent_run_id, tags=tags) as child:
            if not run.fresh and (record := run_folder.finished(known)):
                source = record["mlflow_run_id"]
                link = mlflow_link(source)
                mlflow.set_tags({"reused": "true", "reused_from": source, "reused_from_url": link})
                mlflow.log_metrics(record.get("metrics", {}))
                before = "an interrupted run had done it" if repeat else "nothing changed since"
                run_logger().info("%s: reused, %s: run %s (%s)", name, before, source, link)
                run_folder.link(own, known)
                yield Stage(name, child, own, key, True, record)
                return
            current = Stage(name, child, run_folder.emptied(own), key, outbox=Outbox(child.info.run_id))
            with _worked(current):
                yield current
            current.record |= {"mlflow_run_id": child.info.run_id, "folder": str(own), "stage_key": key}
            run_folder.finish(own, current.record)
            run_folder.link(known, own)


@contextmanager
def _worked(current: Stage) -> Iterator[None]:
    """The block's time and all that it told have arrived in MLflow when this ends."""
    assert current.outbox is not None
    mlflow.set_tag("reused", "false")
    start = time.perf_counter()
    try:
        try:
            yield
            if not current.record:
                raise RuntimeError(f"stage {current.name} ended without a record")
        finally:
            with suppress(Exception):  # what MLflow has refused by now, flush raises
                current.log_metrics({"seconds": time.perf_counter() - start})
        current.outbox.flush()
    except BaseException as error:
        if isinstance(error, Exception):
            cover(error)
        try:
            current.outbox.flush(_LAST_WORDS)
        except Exception as untold:  # what ended the stage is what counts
            run_logger().warning("%s: not all was told: %s", current.name, untold)
        checkpoints = current.folder.parents[2] / "checkpoints"
        if full := disk_full(error, current.folder, checkpoints, current.run.info.artifact_uri):
            raise full from error
        raise
    finally:
        current.outbox.close()
