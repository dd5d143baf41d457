"""Stages that are paid for once: pipelines that were interrupted, tried again, killed, or run at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest

from rlhf_lib.errors import notes
from rlhf_lib.recipe import load_recipe
from tasks.results import StageResult
from tasks.stage.interruption import what_is_kept
from tasks.stage.keys import Stage
from tasks.stage.run import run_stage
from tasks.tracking import run_folder
from tasks.tracking.runs import HEADLINES, PipelineRun, pipeline_run

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def store(mlflow_store, tmp_path):
    with mlflow_store(tmp_path):
        yield


class Work(StageResult):
    by: str


DATA = Stage("data", "tasks.data", Work)
PPO = Stage("ppo", "tasks.ppo", Work, every_run=True)


def work(run: PipelineRun, stage: Stage[Work] = PPO, fault: BaseException | None = None) -> Work:
    """A stage that writes a file, says who did it, and may fail."""
    with run_stage(stage, run, key="settings") as current:
        if not current.reused:
            current.log_metrics({"metric": 1.5}, step=1)
            (current.folder / "model").write_text(run.parent_run_id)
            if fault is not None:
                raise fault
            current.finish(Work(by=run.parent_run_id))
    return current.result


def pipeline(tmp_path: Path, flow_run: str | None = None, fault: BaseException | None = None, **options: Any) -> Any:
    """Data, PPO, then the fault or the end; the PPO stage's result."""
    tags = {"prefect_flow_run_id": flow_run}
    with pipeline_run(load_recipe("embedded"), str(tmp_path / "runs"), tags=tags, **options) as run:
        work(run, DATA)
        result = work(run)
        if fault is not None:
            raise fault
        run.finish(dict.fromkeys(HEADLINES) | {"model": None})
    return result


def parents() -> list[Any]:
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list", order_by=["start_time"])
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags]


def children(parent: str) -> list[tuple[str, str, str]]:
    runs = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.mlflow.parentRunId = '{parent}'",
        order_by=["start_time"],
        output_format="list",
    )
    return [(run.data.tags["stage"], run.data.tags["reused"], run.info.status) for run in runs]


def test_a_run_goes_on_from_what_an_unfinished_one_left_and_a_finished_one_is_repeated(tmp_path):
    with pytest.raises(RuntimeError, match="the disk"):
        pipeline(tmp_path, fault=RuntimeError("the disk"))
    second, third = pipeline(tmp_path), pipeline(tmp_path)
    ids = [run.info.run_id for run in parents()]
    assert (second.by, third.by) == (ids[0], ids[2])
    assert children(ids[1]) == [("data", "true", "FINISHED"), ("ppo", "true", "FINISHED")]
    assert children(ids[2]) == [("data", "true", "FINISHED"), ("ppo", "false", "FINISHED")]
    for run in ids:
        assert (tmp_path / "runs" / "work" / run / "ppo" / "model").is_file()
    assert not list((tmp_path / "runs" / "unfinished").iterdir())


def test_what_was_reused_is_said_of_the_run_that_did_it(tmp_path, caplog):
    """A run that did not end, or one that is still going."""
    caplog.set_level("INFO")
    with pytest.raises(RuntimeError):
        pipeline(tmp_path, fault=RuntimeError("the disk"))
    inside, go_on = threading.Event(), threading.Event()

    def going() -> None:
        with pipeline_run(load_recipe("embedded"), str(tmp_path / "runs"), fresh=True) as run:
            work(run)
            inside.set()
            assert go_on.wait(60)

    pipeline(tmp_path)
    assert "ppo: reused, a run that did not end had done it: run" in caplog.text
    caplog.clear()
    other = threading.Thread(target=going)
    other.start()
    assert inside.wait(60)
    try:
        pipeline(tmp_path)
    finally:
        go_on.set()
        other.join(60)
    assert "ppo: reused, another run, still at work, had done it: run" in caplog.text
    assert "did not end" not in caplog.text


def test_a_flow_run_that_is_tried_again_keeps_its_parent_and_all_that_it_had_done(tmp_path):
    with pytest.raises(RuntimeError):
        pipeline(tmp_path, "a", RuntimeError("the disk"), fresh=True)
    (parent,) = parents()
    assert (parent.info.status, parent.data.tags["failure"]) == ("FAILED", "the disk")
    assert pipeline(tmp_path, "a", fresh=True).by == parent.info.run_id
    (again,) = parents()
    assert again.info.status == "FINISHED"
    assert "failure" not in again.data.tags
    assert children(parent.info.run_id) == [("data", "false", "FINISHED"), ("ppo", "false", "FINISHED")]
    assert pipeline(tmp_path, "b").by != parent.info.run_id


def test_a_stage_that_failed_leaves_nothing_to_reuse_but_its_metrics(tmp_path):
    with pipeline_run(load_recipe("embedded"), str(tmp_path / "runs")) as run:
        with pytest.raises(ValueError, match="a bug"):
            work(run, fault=ValueError("a bug"))
        result = work(run)
    assert result.by == run.parent_run_id
    assert children(run.parent_run_id) == [("ppo", "false", "FAILED"), ("ppo", "false", "FINISHED")]
    failed = mlflow.search_runs(
        search_all_experiments=True, filter_string="attributes.status = 'FAILED'", output_format="list"
    )
    assert failed[0].data.metrics["metric"] == 1.5


@pytest.mark.parametrize(
    ("fresh", "told"),
    [
        (False, "Stopped in ppo; the same command starts this stage over and reuses data"),
        (True, "Stopped in ppo; the same command starts over, as --fresh says"),
    ],
)
def test_an_interrupted_stage_says_what_is_kept(tmp_path, caplog, fresh, told):
    with pipeline_run(load_recipe("embedded"), str(tmp_path / "runs"), fresh=fresh) as run:
        work(run, DATA)
        with pytest.raises(KeyboardInterrupt) as ended:
            work(run, fault=KeyboardInterrupt())
    assert notes(ended.value) == [told]
    (record,) = [record for record in caplog.records if record.getMessage() == told]
    assert record.told  # the command line prints it, as the last line


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (31, "Stopped after step 31; the same command resumes at step 32"),
        (50, "Stopped after step 50; the same command goes on after it"),
        (0, "Stopped in ppo, before its first step was done; the same command starts this stage over"),
    ],
)
def test_what_is_kept_of_ppo(tmp_path, step, told):
    (tmp_path / "work" / "parent").mkdir(parents=True)
    run = PipelineRun(run_dir=str(tmp_path), parent_run_id="parent")
    assert what_is_kept("ppo", run, step, 50) == told


KILLED = """
import os, signal, sys
sys.path.insert(0, ".")
from pathlib import Path
from tests.tasks.stage.test_run import DATA, PPO, pipeline, work
from rlhf_lib.errors import notes
from rlhf_lib.recipe import load_recipe
from tasks.tracking.runs import pipeline_run
with pipeline_run(load_recipe("embedded"), sys.argv[1] + "/runs") as run:
    work(run, DATA)
    from tasks.stage.run import run_stage
    with run_stage(PPO, run, key="settings") as current:
        (current.folder / "half").write_text("a model")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_run_clears_up_after_one_that_was_killed(tmp_path):
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, env=environment, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    (parent,) = parents()
    assert parent.info.status == "RUNNING"
    assert not run_folder.is_running(tmp_path / "runs", parent.info.run_id)

    pipeline(tmp_path)
    closed, done = parents()
    assert (closed.info.status, closed.data.tags["failure"]) == ("FAILED", "its process was gone before it ended")
    assert children(closed.info.run_id) == [("data", "false", "FINISHED"), ("ppo", "false", "FAILED")]
    assert not (tmp_path / "runs" / "work" / closed.info.run_id / "ppo").exists()
    assert children(done.info.run_id) == [("data", "true", "FINISHED"), ("ppo", "false", "FINISHED")]


@pytest.mark.parametrize("fresh", [False, True])
def test_two_runs_at_once_wait_for_each_other_and_keep_what_the_other_reads(tmp_path, fresh):
    inside, go_on, results = threading.Event(), threading.Event(), {}

    def first() -> None:
        with pipeline_run(load_recipe("embedded"), str(tmp_path / "runs"), fresh=fresh) as run:
            assert run_folder.is_running(tmp_path / "runs", run.parent_run_id)
            with run_stage(DATA, run, key="settings") as current:
                inside.set()
                assert go_on.wait(60)
                (current.folder / "rows").write_text("first")
                current.finish(Work(by="first"))
            results["first"] = current.result

    def second() -> None:
        assert inside.wait(60)
        with pipeline_run(load_recipe("embedded"), str(tmp_path / "runs"), fresh=fresh) as run:
            threading.Timer(1, go_on.set).start()
            with run_stage(DATA, run, key="settings") as current:
                assert go_on.is_set()
                assert current.reused is not fresh
                if not current.reused:
                    (current.folder / "rows").write_text("second")
                    current.finish(Work(by="second"))
            results["second"] = current.result

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    last = "second" if fresh else "first"
    assert (results["first"].by, results["second"].by) == ("first", last)
    assert (Path(results["first"].folder) / "rows").read_text() == "first"
    assert (Path(results["second"].folder) / "rows").read_text() == last
    (newest,) = (tmp_path / "runs" / "stages").iterdir()
    assert (newest / "rows").read_text() == last
