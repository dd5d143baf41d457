"""Running a stage: an MLflow child run and a folder for each, and work that is done only once.

If the run folder holds a finished stage with the same key (tasks/stage/keys.py), its result is reused: the child run
still exists, tagged `reused` and pointing to the run that did the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from tasks.stage.full_disk import disk_full
from tasks.stage.interruption import SIGNALLED, what_is_kept
from tasks.stage.keys import Result, Stage
from tasks.tracking import run_folder, run_logger
from tasks.tracking.metrics_buffer import MetricsBuffer
from tasks.tracking.progress import StageProgress, showing
from tasks.tracking.runs import PipelineRun, mlflow_link, redact_error

_LAST_WORDS = 5.0  # seconds that a stage which ends early waits for the tracking server: who cancels wants it gone


@dataclass
class StageRun(Generic[Result]):
    """A stage at work: its child run, its folder, and the result that it finishes with."""

    stage: Stage[Result]
    run: Run
    folder: Path
    key: str
    buffer: MetricsBuffer | None = None  # None: reused
    _result: Result | None = None
    _progress: StageProgress | None = None
    kept: Callable[[], tuple[int, int]] | None = None  # of a stage that resumes: the step that it has saved, of all

    @property
    def reused(self) -> bool:
        return self.buffer is None

    @property
    def result(self) -> Result:
        if self._result is None:
            raise RuntimeError(f"stage {self.stage.name} has no result yet")
        return self._result

    @property
    def progress(self) -> StageProgress:
        """What the terminal or the log shows of the stage."""
        assert self._progress is not None, "a reused stage has no progress"
        return self._progress

    def finish(self, result: Result) -> None:
        """Set the result; the run's id, the folder and the key are added to it."""
        ids = {"mlflow_run_id": self.run.info.run_id, "folder": str(self.folder), "stage_key": self.key}
        self._result = result.model_copy(update=ids)

    def log_metrics(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        """Log to the child run without waiting for it; metrics that don't apply (None) are left out, never 0."""
        assert self.buffer is not None, "a reused stage has its metrics"
        self.buffer.metrics({name: value for name, value in metrics.items() if value is not None}, step)

    def later(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function that logs to MLflow, without waiting for it; see MetricsBuffer.call."""
        assert self.buffer is not None, "a reused stage has told all"
        self.buffer.call(partial(function, *args))


@contextmanager
def run_stage(stage: Stage[Result], run: PipelineRun, *, key: str) -> Iterator[StageRun[Result]]:
    """Open the child run of a stage under the parent run, and its folder RUN_DIR/work/PARENT/NAME.

    If a finished stage has the key, the caller finds `reused` true and `result` set, and should return it at once.
    Otherwise the caller works in `folder`, which is empty, and calls `finish`. Of two runs at once with the same key
    the second waits for the first. A run that is itself retried finds all that it had done.
    """
    name, root = stage.name, Path(run.run_dir)
    own, shared = root / "work" / run.parent_run_id / name, root / ("unfinished" if stage.every_run else "stages")
    known = shared / f"{name}-{key}"
    with run_folder.file_lock(root, known.name):
        if (result := _finished(stage, own)) and result.stage_key == key:
            run_logger().info("%s: done before this run was interrupted", name)
            yield StageRun(stage, mlflow.get_run(result.mlflow_run_id), own, key, None, result)
            return
        tags = {"stage": name, "stage_key": key}
        title = f"{name}: {run.name}" if run.name else name
        with mlflow.start_run(run_name=title, nested=True, parent_run_id=run.parent_run_id, tags=tags) as child:
            if not run.fresh and (result := _finished(stage, known)) and (link := _link(result.mlflow_run_id)):
                source = result.mlflow_run_id
                mlflow.set_tags({"reused": "true", "reused_from": source, "reused_from_url": link})
                mlflow.log_metrics(result.metrics)
                before = "nothing changed since"
                if stage.every_run:
                    doer = known.resolve().parent.name
                    going = run_folder.is_running(root, doer)
                    before = f"{'another run, still at work,' if going else 'a run that did not end'} had done it"
                run_logger().info("%s: reused, %s: run %s (%s)", name, before, source, link)
                run_folder.link(own, known)
                yield StageRun(stage, child, own, key, None, result)
                return
            current = StageRun(stage, child, run_folder.emptied(own), key, MetricsBuffer(child.info.run_id))
            try:
                with _worked(current):
                    yield current
            except SIGNALLED as signal:
                kept = what_is_kept(name, run, *(current.kept() if current.kept else ()))
                run_logger().warning(kept, extra={"told": True})
                signal.add_note(kept)
                raise
            run_folder.finish(own, current.result.model_dump(mode="json"))
            run_folder.link(known, own)


def _finished(stage: Stage[Result], folder: Path) -> Result | None:
    """The result that the folder holds; None where there is none, or one that another version wrote."""
    record = run_folder.finished(folder)
    if record is None:
        return None
    try:
        return stage.result.model_validate(record)
    except ValidationError:
        run_logger().info("%s: %s was written by another version and is not reused", stage.name, folder)
        return None


def _link(run_id: str) -> str | None:
    """The page of a run; None for one that was purged from MLflow, whose work is then done again."""
    try:
        return mlflow_link(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


@contextmanager
def _worked(current: StageRun[Any]) -> Iterator[None]:
    """When this ends, the block's time and everything it logged have arrived in MLflow."""
    assert current.buffer is not None
    mlflow.set_tag("reused", "false")
    start = time.perf_counter()
    try:
        try:
            with showing(current.stage.name) as current._progress:
                yield
            _ = current.result  # a stage that ends must have one
        finally:
            with suppress(Exception):  # what MLflow has refused by now, flush raises
                current.log_metrics({"seconds": time.perf_counter() - start})
        current.buffer.flush()
    except BaseException as error:
        if isinstance(error, Exception):
            redact_error(error)
        try:
            current.buffer.flush(_LAST_WORDS)
        except Exception as untold:  # what ended the stage is what counts
            run_logger().warning("%s: not all was told: %s", current.stage.name, untold)
        checkpoints = current.folder.parents[2] / "checkpoints"
        if full := disk_full(error, current.folder, checkpoints, current.run.info.artifact_uri):
            raise full from error
        raise
    finally:
        current.buffer.close()
