"""What `rlhf clean` removes and what it doesn't, on a real MLflow store and run folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from registered import make_recipe, policy_folders  # noqa: F401
from tiny_models import one_thread  # noqa: F401

from rlhf_lib.recipe import load_recipe
from tasks.registry import champions, policies, versions
from tasks.results import StageResult
from tasks.retention import clean as cleaning
from tasks.retention.clean import clean, raise_failures
from tasks.retention.settings import Keep, Retention
from tasks.stage.keys import Stage
from tasks.stage.run import run_stage
from tasks.tracking import run_folder
from tasks.tracking.runs import HEADLINES, PipelineRun, pipeline_run

ROOT = Path(__file__).parents[3]
ALL = Keep(newest=0, days=0)
NOTHING = Retention(checkpoints=None, work=None)
DAY = 86400


class Work(StageResult):
    by: str


DATA = Stage("data", "tasks.data", Work)
PPO = Stage("ppo", "tasks.ppo", Work, every_run=True)


@pytest.fixture(autouse=True)
def root(mlflow_store, tmp_path):
    with mlflow_store(tmp_path):
        yield tmp_path / "runs"


def keeping(**kinds: Keep | None) -> Retention:
    return NOTHING.model_copy(update=kinds)


def work(run: PipelineRun, stage: Stage[Work], key: str = "key") -> Path:
    """A stage that leaves a file, in PPO's case checkpoints, and an artifact; its folder."""
    with run_stage(stage, run, key=key) as current:
        if not current.reused:
            (current.folder / "model").write_text("x" * 1000)
            mlflow.log_text("y" * 100, "plot.txt")
            if stage is PPO:
                (current.folder / "checkpoints" / "step-000001").mkdir(parents=True)
                (current.folder / "checkpoints" / "step-000001" / "policy").write_text("z" * 500)
            current.finish(Work(by=run.parent_run_id))
    return Path(current.result.folder)


def pipeline(root: Path, *, days_ago: float = 0, data: str | None = None, fault: Exception | None = None, **overrides):
    """A run of two stages that ended so many days ago; its id. `data`: the first stage's key, by default its own."""
    recipe = load_recipe("embedded", [f"{key}={value}" for key, value in overrides.items()])
    try:
        with pipeline_run(recipe, str(root)) as run:
            work(run, DATA, data or run.parent_run_id)
            work(run, PPO, run.parent_run_id)
            if fault is not None:
                raise fault
            run.finish(dict.fromkeys(HEADLINES) | {"model": None})
    except RuntimeError:
        pass
    age(root, run.parent_run_id, days_ago)
    return run.parent_run_id


def age(root: Path, run: str, days: float) -> None:
    """Put the run's end into the past, in MLflow and in the folder."""
    client, then = mlflow.MlflowClient(), time.time() - days * DAY
    client.set_terminated(run, mlflow.get_run(run).info.status, int(1000 * then))
    for file in (root / "work" / run).rglob("*"):
        os.utime(file, (then, then), follow_symlinks=False)


def kinds(record: dict[str, Any]) -> list[str]:
    return [piece["kind"] for piece in record["removed"]]


def stages(root: Path, run: str) -> set[str]:
    folder = root / "work" / run
    return {place.name for place in folder.iterdir() if place.is_dir()} if folder.is_dir() else set()


def artifacts(run: str) -> list[str]:
    return [item.path for item in mlflow.MlflowClient().list_artifacts(run)]


def stage_runs(run: str) -> list[str]:
    found = mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.mlflow.parentRunId = '{run}'", output_format="list"
    )
    return [each.info.run_id for each in found]


def test_old_runs_beyond_the_newest_go_and_a_dry_run_only_lists_them(root):
    old, older, new = pipeline(root, days_ago=20), pipeline(root, days_ago=30), pipeline(root, days_ago=10)
    other = pipeline(root, days_ago=40, name="other")  # the newest of its recipe
    policy = keeping(work=Keep(newest=1, days=15))
    for dry_run in (True, False):
        for run in (old, older, new, other):
            assert stages(root, run) == {"data", "ppo"}
        record = clean(root, policy, dry_run=dry_run)
        assert kinds(record) == ["work"] * 4
        assert (
            record["bytes"]
            == 2 * (1000 + 1500)
            + sum(
                (root / "work" / run / stage / "record.json").stat().st_size
                for run in (old, older)
                for stage in ("data", "ppo")
                if dry_run
            )
            or not dry_run
        )
    assert [bool(stages(root, run)) for run in (old, older, new, other)] == [False, False, True, True]
    assert not list((root / "removing").glob("*"))
    assert len(list((root / "stages").iterdir())) == 2  # the links to what is gone went too
    assert artifacts(old)
    assert clean(root, policy)["removed"] == []


def test_checkpoints_go_and_the_rest_of_their_stage_stays(root):
    old, new = pipeline(root, days_ago=5), pipeline(root)
    record = clean(root, keeping(checkpoints=Keep(newest=1)))
    assert [(piece["kind"], piece["bytes"]) for piece in record["removed"]] == [("checkpoints", 500)]
    assert (root / "work" / old / "ppo" / "model").is_file()
    assert not (root / "work" / old / "ppo" / "checkpoints").exists()
    assert (root / "work" / new / "ppo" / "checkpoints").is_dir()


def test_an_interrupted_run_stays_until_it_is_too_old(root):
    failed = pipeline(root, days_ago=10, fault=RuntimeError("the disk"))
    left = root / "checkpoints" / "0123456789abcdef" / "step-000003"
    left.mkdir(parents=True)
    (left / "policy").write_text("z")
    for place in (left / "policy", left, left.parent):
        os.utime(place, (time.time() - 10 * DAY,) * 2)
    for keep in (Keep(newest=0), Keep(newest=0, days=11)):
        assert clean(root, Retention(checkpoints=keep, work=keep, artifacts=keep, runs=keep))["removed"] == []
    assert stages(root, failed) == {"data", "ppo"}
    with run_folder.file_lock(root, "ppo-0123456789abcdef"):  # a run is at it
        clean(root, keeping(checkpoints=Keep(newest=0, days=9)))
        assert left.is_dir()
    keep = Keep(newest=0, days=9)
    record = clean(root, Retention(checkpoints=keep, work=keep, artifacts=keep, runs=keep))
    assert sorted(kinds(record)) == ["checkpoints", "runs", "work", "work"]
    assert not left.exists()
    assert not (root / "work" / failed).exists()


def test_a_live_run_and_what_it_reuses_are_untouched(root):
    maker = pipeline(root, days_ago=50, data="shared")
    inside, go_on = threading.Event(), threading.Event()
    seen: dict[str, Any] = {}

    def live() -> None:
        with pipeline_run(load_recipe("embedded"), str(root)) as run:
            seen["id"] = run.parent_run_id
            seen["data"] = work(run, DATA, "shared")
            inside.set()
            assert go_on.wait(120)
            seen["readable"] = (seen["data"] / "model").is_file()
            work(run, PPO)

    thread = threading.Thread(target=live)
    thread.start()
    assert inside.wait(120)
    record = clean(root, Retention(checkpoints=ALL, work=ALL, artifacts=ALL, runs=ALL))
    assert record["kept"]["live"] == 1
    assert stages(root, maker) == {"data"}  # its PPO went, the data that the live run reads did not
    assert mlflow.get_run(maker).info.lifecycle_stage == "active"
    go_on.set()
    thread.join(120)
    assert seen["readable"]
    assert stages(root, seen["id"]) == {"data", "ppo"}
    assert artifacts(seen["id"])

    clean(root, Retention(checkpoints=ALL, work=ALL, artifacts=ALL, runs=ALL))
    for run in (maker, seen["id"]):
        assert not (root / "work" / run).exists()
    assert not list((root / "stages").iterdir())


def test_a_reused_stage_stays_for_whoever_keeps_it_and_is_done_again_once_it_is_gone(root):
    maker, user = pipeline(root, days_ago=50, data="shared"), pipeline(root, data="shared")
    assert (root / "work" / user / "data").resolve() == root / "work" / maker / "data"
    policy = Retention(checkpoints=None, work=Keep(days=9), runs=Keep(days=9))
    clean(root, policy)
    assert stages(root, maker) == {"data"}
    assert stages(root, user) == {"data", "ppo"}
    age(root, user, 10)
    clean(root, policy)
    again = pipeline(root, data="shared")
    assert not (root / "work" / again / "data").is_symlink()


def test_a_purged_run_of_mlflow_does_not_stop_the_next_run(root):
    maker = pipeline(root, data="shared")
    (child,) = [run for run in stage_runs(maker) if mlflow.get_run(run).data.tags["stage"] == "data"]
    mlflow.MlflowClient().delete_run(child)
    store = mlflow.tracking._tracking_service.utils._get_store()
    store._hard_delete_run(child)  # as mlflow gc does
    again = pipeline(root, data="shared")
    assert not (root / "work" / again / "data").is_symlink()


def test_artifacts_go_and_metrics_stay(root):
    old, new = pipeline(root, days_ago=20), pipeline(root)
    client, child = mlflow.MlflowClient(), mlflow.get_run(stage_runs(old)[0])
    logged = client.create_logged_model(child.info.experiment_id, "policy", child.info.run_id)
    client.log_model_artifact(logged.model_id, str(root / "work" / old / "ppo" / "model"))
    size = clean(root, keeping(artifacts=Keep(newest=1)), dry_run=True)["bytes"]
    assert size > 1000 + 2 * 100
    record = clean(root, keeping(artifacts=Keep(newest=1)))
    assert [(piece["kind"], piece["bytes"]) for piece in record["removed"]] == [("artifacts", size)]
    assert not any(artifacts(run) for run in (old, *stage_runs(old)))
    assert mlflow.get_run(old).data.params
    assert all(artifacts(run) for run in (new, *stage_runs(new)))
    with pytest.raises(MlflowException):
        mlflow.MlflowClient().get_logged_model(logged.model_id)
    assert not [file for file in (root / "artifacts").rglob("*") if file.is_file() and logged.model_id in str(file)]
    assert clean(root, keeping(artifacts=Keep(newest=1)))["removed"] == []


def test_runs_go_with_all_that_is_theirs(root):
    old, new = pipeline(root, days_ago=20), pipeline(root)
    mine = [old, *stage_runs(old)]
    record = clean(root, keeping(runs=Keep(newest=1, days=10)))
    assert sorted(kinds(record)) == ["runs", "work", "work"]
    listed = mlflow.search_runs(search_all_experiments=True, output_format="list", run_view_type=ViewType.ACTIVE_ONLY)
    assert {run.info.run_id for run in listed} == {new, *stage_runs(new)}
    assert not [
        file for file in (root / "artifacts").rglob("*") if file.is_file() and any(r in str(file) for r in mine)
    ]
    assert not (root / "work" / old).exists()
    assert stages(root, new) == {"data", "ppo"}


def test_another_run_folders_runs_are_left_alone(root, tmp_path):
    elsewhere = pipeline(tmp_path / "other", days_ago=50)
    clean(root, Retention(checkpoints=ALL, work=ALL, artifacts=ALL, runs=ALL))
    assert artifacts(elsewhere)
    assert stages(tmp_path / "other", elsewhere) == {"data", "ppo"}


def test_a_run_that_begins_after_the_look_around_is_untouched(root, monkeypatch):
    run = pipeline(root, days_ago=50)
    look = cleaning.find_runs
    monkeypatch.setattr(cleaning, "find_runs", lambda root: {k: v for k, v in look(root).items() if k != run})
    assert clean(root, Retention(checkpoints=ALL, work=ALL, artifacts=ALL, runs=ALL))["removed"] == []
    assert stages(root, run) == {"data", "ppo"}


# ---------------------------------------------------------------- registered versions


def registered(root: Path, folders: dict[str, str], like: str = "plain", **sections: Any) -> tuple[str, str]:
    """A run that registers a policy with its reference and reward model kept in MLflow; (run, version)."""
    recipe = make_recipe(**sections)
    with pipeline_run(recipe, str(root)) as run:
        work(run, PPO, run.parent_run_id)
        with mlflow.start_run(run_name="registration", nested=True, parent_run_id=run.parent_run_id):
            logged = policies.log_policy(
                folders[like],
                settings={
                    "seq2seq": False,
                    "max_new_tokens": 4,
                    "positions": 128,
                    "end_ids": [],
                    "stop": None,
                    "trust_remote_code": False,
                    "example": "hello",
                    "template": "{prompt}",
                    "turn": None,
                },
                params={},
                run_id=run.parent_run_id,
            )
            tags = {"recipe": recipe.name, "parent_run_id": run.parent_run_id, "base_model_fingerprint": "same"}
            tags[versions.REFERENCE] = str(versions.keep(versions.REFERENCE, folders["plain"], recipe.name, "same"))
            tags[versions.REWARD_MODEL] = str(versions.keep(versions.REWARD_MODEL, folders["brief"], recipe.name, None))
            made = policies.create_version(recipe.name, logged, run_id=run.parent_run_id, about="", card="", tags=tags)
        champions.crown(recipe.name, str(made.version), "gates", None)
        run.finish(dict.fromkeys(HEADLINES) | {"model": None})
    return run.parent_run_id, str(made.version)


def test_a_champion_and_those_before_it_still_load_after_cleaning_everything(root, folders, tmp_path):
    first, second = registered(root, folders), registered(root, folders, "lettered")
    everything = Retention(checkpoints=ALL, work=ALL, artifacts=ALL, runs=ALL)
    record = clean(root, everything)
    assert record["kept"]["versions"] == 2
    assert not record["failed"]
    for run, number in (first, second):
        assert stages(root, run) == set()
        version = versions.version_of(f"models:/letters/{number}")
        assert list(Path(policies.resolve_model(versions.uri_of(version))).glob("*.safetensors"))
        assert list(Path(versions.reference_of(version)).glob("*.safetensors"))
        assert list(Path(versions._fetched(version, versions.REWARD_MODEL, "")).glob("*.safetensors"))
        assert versions.recipe_of(version).name == "letters"
    # the second's reference is the artifact that the first's registration kept
    assert len({versions.version_of(f"models:/letters/{n}").tags[versions.REFERENCE] for n in "12"}) == 1
    assert champions.rollback("letters").version == "1"
    assert mlflow.get_run(first[0]).info.lifecycle_stage == "active"

    # a version that a person deletes takes with it what it alone needed
    mlflow.MlflowClient().delete_model_version("letters", second[1])
    assert kinds(clean(root, keeping(artifacts=ALL))) == ["artifacts"]
    assert kinds(clean(root, everything)) == ["runs"]
    assert policies.resolve_model("models:/letters/1")
    assert versions.reference_of(versions.version_of("models:/letters/1"))
    models = mlflow.search_logged_models(output_format="list")
    assert [model.source_run_id for model in models] == [versions.version_of("models:/letters/1").run_id]


def test_a_folder_that_a_versions_recipe_names_stays(root, folders):
    maker = pipeline(root, days_ago=50)
    run, _ = registered(root, folders, policy={"model": f"{root}/work/{maker}/ppo/policy"})
    clean(root, Retention(checkpoints=None, work=ALL, runs=ALL))
    assert stages(root, maker) == {"data", "ppo"}
    assert stages(root, run) == set()


# ---------------------------------------------------------------- interrupted


class Killed(BaseException):
    pass


def killer(monkeypatch: pytest.MonkeyPatch, end: Callable[[], None], at: int) -> list[int]:
    """End the process at the so many-th call of what removes things; the calls so far."""
    calls: list[int] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            calls.append(1)
            if len(calls) == at:
                end()
            return function(*args, **more)

        return call

    for place, name in (
        (cleaning, "_remove_artifacts"),
        (cleaning, "_remove_model"),
        (mlflow.MlflowClient, "delete_run"),
        (mlflow.MlflowClient, "set_tag"),
        (run_folder.shutil, "rmtree"),
        (run_folder, "discard"),
    ):
        monkeypatch.setattr(place, name, counted(getattr(place, name)))
    return calls


def test_ended_anywhere_the_next_call_finishes_it(root, monkeypatch):
    def end() -> None:
        raise Killed

    old, new = pipeline(root, days_ago=20), pipeline(root)
    mine = [old, *stage_runs(old)]
    ends = 0
    while True:
        with monkeypatch.context() as patch:
            calls = killer(patch, end, ends + 1)
            try:
                clean(root, keeping(runs=Keep(newest=1)))
            except Killed:
                ends += 1
                continue
            break
    assert ends >= 4
    assert len(calls) <= ends
    listed = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {run.info.run_id for run in listed} == {new, *stage_runs(new)}
    files = [str(file) for file in (root / "artifacts").rglob("*") if file.is_file()]
    assert not [file for file in files if any(run in file for run in mine)]
    assert not (root / "work" / old).exists()
    assert not list((root / "removing").glob("*"))


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.retention import clean as cleaning
from tasks.retention.settings import Keep, Retention
remove, done = cleaning._remove_artifacts, []
def kill_at_the_second(run):
    if done:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(remove(run))
cleaning._remove_artifacts = kill_at_the_second
cleaning.clean(Path(sys.argv[1]), Retention(checkpoints=None, work=None, runs=Keep(newest=1)))
"""


def test_killed_it_leaves_no_lock_behind(root):
    old, new = pipeline(root, days_ago=20), pipeline(root)
    command = [sys.executable, "-c", KILLED, str(root)]
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    killed = subprocess.run(command, cwd=ROOT, env=environment, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert mlflow.get_run(old).info.lifecycle_stage == "active"
    clean(root, NOTHING)  # what has begun is finished under any policy
    assert mlflow.get_run(old).info.lifecycle_stage == "deleted"
    assert not (root / "work" / old).exists()
    assert stages(root, new) == {"data", "ppo"}


def test_one_piece_that_fails_does_not_stop_the_others(root, monkeypatch):
    first, second = pipeline(root, days_ago=30), pipeline(root, days_ago=20)

    def refuse(run: Any) -> None:
        if run.info.run_id == first:
            raise PermissionError("the bucket is read-only")
        remove(run)

    remove = cleaning._remove_artifacts
    monkeypatch.setattr(cleaning, "_remove_artifacts", refuse)
    record = clean(root, keeping(artifacts=ALL))
    assert [piece["kind"] for piece in record["removed"]] == ["artifacts"]
    assert not artifacts(second)
    with pytest.raises(
        Exception, match=r"1 of 2 pieces could not be removed; the first is artifacts of embedded \(.*bucket"
    ):
        raise_failures(record)
    monkeypatch.undo()
    assert len(clean(root, keeping(artifacts=ALL))["removed"]) == 1
    assert not artifacts(first)
