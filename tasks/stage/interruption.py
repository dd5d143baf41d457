"""What an interrupted run keeps, in one line: it is logged, and the command line prints it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment

from tasks.tracking import run_folder
from tasks.tracking.runs import PipelineRun

SIGNALLED = (KeyboardInterrupt, TerminationSignal, SystemExit)  # what SIGINT and SIGTERM raise


def what_is_kept(stage: str, run: PipelineRun, step: int | None = None, steps: int | None = None) -> str:
    """`Stopped after step 31; the same command resumes at step 32`.

    `step`: PPO's newest checkpoint, 0 for none; None: of a stage that always starts over. `steps`: all that PPO has.
    """
    again = "a retry of this flow run" if deployment.id else "the same command"
    where = f"Stopped after step {step}" if step else f"Stopped in {stage}"
    if run.fresh and not deployment.id:
        return f"{where}; the same command starts over, as --fresh says"
    if step:
        goes_on = f"resumes at step {step + 1}" if steps is None or step < steps else "goes on after it"
        return f"{where}; {again} {goes_on}"
    before = _finished(run)
    reused = f" and reuses {_listed(before)}" if before else ""
    none_done = ", before its first step was done" if step == 0 else ""
    return f"{where}{none_done}; {again} starts this stage over{reused}"


def _finished(run: PipelineRun) -> list[str]:
    """The run's finished stages, in the order in which they ended."""
    folder = Path(run.run_dir) / "work" / run.parent_run_id
    records = [stage / run_folder.RECORD for stage in folder.iterdir() if (stage / run_folder.RECORD).is_file()]
    return [record.parent.name for record in sorted(records, key=lambda record: record.stat().st_mtime)]


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
