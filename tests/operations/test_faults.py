"""Faults on real servers: whatever is killed, goes away, fills up or is cancelled, the run recovers or says what to do,
nothing finished is done twice, and the figures are those of an undisturbed run. Behind `make test-faults`.

RLHF_FAULT_KILLS=4 shortens the kills to so many of a single run, for CI. RLHF_FAULT_LOG=FILE gets a line of JSON each.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults import (
    RECIPE,
    ROOT,
    STAGES,
    TARGETS,
    Child,
    FlowRun,
    Operated,
    assert_whole,
    figures,
    kill_at_random,
    operated,
    recover,
    settled,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("RLHF_FAULT_KILLS", "33"))
SHORT = KILLS < 30
AWAY = 5.0 if SHORT else 60.0  # seconds
GONE = 15.0  # seconds from a cancellation to the end of the last process
TRIES = 10  # flow runs, until every stage of the list was hit: one that a fault doesn't stop may run past its turn


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[Operated]:
    with operated(tmp_path_factory.mktemp("faults")) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(servers) -> FlowRun:
    """A run that nothing happens to."""
    run = servers.trigger("undisturbed")
    state = run.ended()
    assert state["type"] == "COMPLETED", state
    return run


@pytest.fixture(scope="module")
def expected(undisturbed) -> dict[str, Any]:
    assert_whole(undisturbed, figures(undisturbed.record()))
    return figures(undisturbed.record())


@pytest.fixture(scope="module")
def usual(undisturbed) -> dict[str, float]:
    """Seconds of each stage."""
    return {child.stage: child.metrics["seconds"] for child in undisturbed.children()}


def plan(target: str) -> list[tuple[str, str]]:
    """(target, stage) in the order of the stages: each once, PPO more often."""
    if SHORT:
        return [("flow", "base_model"), ("prefect", "reward_model"), ("mlflow", "ppo"), ("worker", "evaluation")][
            :KILLS
        ]
    often = {"ppo": 3 if target == "flow" else 2}
    return [(target, stage) for stage in STAGES for _ in range(often.get(stage, 1))]


@pytest.mark.parametrize("target", ["each"] if SHORT else TARGETS)
def test_killed_in_every_stage(servers, expected, usual, target):
    draw, left, kills = random.Random(f"{target} 0"), plan(target), []
    for number in range(TRIES):
        if not left:
            break
        run = servers.trigger(f"{target}-{number}", folder=f"{target}-{number}")
        for pair in list(left):
            kill = kill_in(pair, run, usual, draw)
            if kill is not None:
                left.remove(pair)
                kills.append(kill | recover(pair[0], run))
                tell(kills[-1])
        while (state := run.ended())["type"] in ("FAILED", "CRASHED"):
            tell({"target": target, "ended": state["message"], "needed": "retry"})
            run.retry()
        assert_whole(run, expected)
    assert not left
    print(Counter((kill["stage"], kill["needed"]) for kill in kills))


def kill_in(pair: tuple[str, str], run: FlowRun, usual: dict[str, float], draw: random.Random) -> dict[str, Any] | None:
    """Wait for the stage's turn and kill in it; None where the run had passed it."""
    target, stage = pair
    while run.at_work(stage) is None:
        state = run.state
        if state["type"] in ("FAILED", "CRASHED"):
            run.retry()
        begun = {child.stage for child in run.children() if child.status == "FINISHED"}
        if stage in begun or state["type"] == "COMPLETED":
            return None
    return kill_at_random(target, stage, run, usual, draw)


def tell(kill: dict[str, Any]) -> None:
    line = json.dumps(kill)
    print(line, flush=True)
    if file := os.environ.get("RLHF_FAULT_LOG"):
        with Path(file).open("a") as log:
            log.write(line + "\n")


# ---------------------------------------------------------------- the tracking server away


def checkpoint(run: FlowRun, step: int) -> bool:
    """Whether PPO has written that step's, whole."""
    return bool(list(run.folder.glob(f"checkpoints/*/step-{step:06d}")))


def last_ppo(run: FlowRun) -> Child:
    return [child for child in run.children() if child.stage == "ppo"][-1]


def test_the_tracking_server_is_away_in_mid_ppo(servers, expected):
    run = servers.trigger("outage")
    run.await_stage("ppo")
    work = run.folder / "work" / run.parents()[0].id / "ppo"
    settled(lambda: checkpoint(run, 2), "a checkpoint", every=0.02)
    trained = [path.name for path in work.iterdir()]
    servers.kill("mlflow", how=signal.SIGTERM)
    until = time.monotonic() + AWAY
    assert "policy" not in trained
    settled(lambda: (work / "policy").is_dir(), "PPO's last step, without the server")
    assert run.state["type"] == "RUNNING"
    time.sleep(max(0.0, until - time.monotonic()))
    servers.up()
    assert run.ended()["type"] == "COMPLETED"
    assert_whole(run, expected, reused=4)


# ---------------------------------------------------------------- full disks


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """A file system of so many bytes at the folder."""
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def make_room(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)


def size_of(folder: Path) -> int:
    """In whole pages, as a tmpfs counts."""
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in folder.rglob("*") if file.is_file())


def test_the_disk_is_full_in_a_checkpoint(servers, undisturbed, expected):
    kept = undisturbed.folder / "work" / undisturbed.parents()[0].id / "ppo" / "checkpoints"
    place = undisturbed.folder / "checkpoints"
    with small_disk(place, int(1.5 * max(size_of(step) for step in kept.iterdir()))):
        run = servers.trigger("full-checkpoint")
        state = run.ended()
        assert state["type"] == "FAILED"
        assert f"the disk of {place}" in state["message"]
        assert "are free. Make room" in state["message"]
        assert not [entry for entry in servers.logs(run) if "Traceback" in entry["message"]]
        assert checkpoint(run, 2)
        assert not checkpoint(run, 4)
        assert not [child for child in run.children() if child.status == "RUNNING"]
        make_room(place)
        run.retry()
        settled(lambda: run.state["type"] == "COMPLETED", "the retried run")
        assert_whole(run, expected, reused=4)
        assert last_ppo(run).tags["resumed_at_step"] == "2"


def test_the_disk_is_full_in_an_upload(servers, undisturbed, expected):
    """All artifacts lie below one folder; there is room for what comes before the evaluation's."""
    before = [c.folder for c in undisturbed.children() if c.stage == "ppo"] + [undisturbed.parents()[0].folder]
    place = servers.folder / "artifacts"
    with small_disk(place, sum(map(size_of, before)) + 64 * 1024):
        run = servers.trigger("full-upload")
        state = run.ended()
        assert state["type"] == "FAILED"
        assert f"the disk of {place}" in state["message"]
        assert not [entry for entry in servers.logs(run) if "Traceback" in entry["message"]]
        done = {child.stage for child in run.children() if child.status == "FINISHED"}
        assert done == set(STAGES[:5])
        make_room(place)
        run.retry()
        settled(lambda: run.state["type"] == "COMPLETED", "the retried run")
        assert_whole(run, expected, reused=4)


# ---------------------------------------------------------------- two at once


def at_once(servers: Operated, folder: str, *runs: list[str]) -> list[dict[str, Any]]:
    """The records of runs started together by `rlhf run` in one folder, under the gpu limit of two."""
    where = servers.folder / folder
    where.mkdir(exist_ok=True)
    told = servers.environment | {"PREFECT_API_URL": f"{servers.api}/api", "MLFLOW_TRACKING_URI": servers.tracking}
    settings = [f"--set={key}={json.dumps(value)}" for key, value in RECIPE.items()]
    servers.command("-m", "prefect", "gcl", "update", "tag:gpu", "--limit", "2")
    started = []
    for number, words in enumerate(runs):
        command = [sys.executable, "-m", "flows.cli", "run", "embedded", "--run-dir", str(where), *settings, *words]
        command += ["--summary", str(where / f"{number}.json")]
        log = (where / f"{number}.log").open("wb")
        started.append(subprocess.Popen(command, cwd=ROOT, env=told, stdout=log, stderr=log))
    try:
        for number, process in enumerate(started):
            assert process.wait(900) == 0, (where / f"{number}.log").read_text()[-5000:]
    finally:
        for process in started:
            process.kill()
        servers.command("-m", "prefect", "gcl", "update", "tag:gpu", "--limit", "1")
    return [json.loads((where / f"{number}.json").read_text()) for number in range(len(runs))]


def done(servers: Operated, records: list[dict[str, Any]]) -> Counter[str]:
    """Which stages these pipelines did themselves, and how often."""
    children = [c for r in records for c in servers.search(f"tags.mlflow.parentRunId = '{r['mlflow_run_id']}'")]
    assert {child.status for child in children} == {"FINISHED"}
    return Counter(child.stage for child in children if child.reused == "false")


def test_two_pipelines_in_one_run_folder_do_the_same_work_once(servers, expected):
    name = ["--set=registration.name=twins"]
    records = at_once(servers, "pair", name, name)
    assert [figures(record) for record in records] == [expected] * 2
    counted = done(servers, records)
    assert all(counted[stage] == 1 for stage in STAGES[:4]), counted
    # one policy, evaluated once, is one version: whoever comes to it second finds it registered
    assert len(servers.versions("twins")) == counted["evaluation"] <= counted["registration"]


@pytest.mark.skipif(SHORT, reason="the kills are shortened, and this with them")
def test_two_fresh_pipelines_in_one_run_folder_do_all_of_it(servers, expected):
    records = at_once(servers, "fresh", *(["--fresh", f"--set=registration.name=fresh-{i}"] for i in range(2)))
    assert [figures(record) for record in records] == [expected] * 2
    assert set(done(servers, records).values()) == {2}


@pytest.mark.skipif(SHORT, reason="the kills are shortened, and this with them")
def test_two_pipelines_with_other_seeds_in_one_run_folder_keep_apart(servers, expected):
    seeds = [[f"--set=registration.name=seed-{seed}", f"--set=seed={seed}"] for seed in (0, 7)]
    default, other = at_once(servers, "seeds", *seeds)
    assert figures(default) == expected
    assert figures(other) != expected
    (alone,) = at_once(servers, "seed-alone", seeds[1])
    assert figures(other) == figures(alone)


# ---------------------------------------------------------------- clocks


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler: apt-get install gcc")
def test_the_clock_steps_back_and_ahead_in_mid_ppo(servers, expected, tmp_path):
    library, ahead = tmp_path / "clock_step.so", tmp_path / "ahead"
    source = ROOT / "tests" / "support" / "clock_step.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    ahead.write_bytes(struct.pack("q", 0))
    run = servers.trigger("clock", environment={"LD_PRELOAD": str(library), "CLOCK_STEP_FILE": str(ahead)})
    run.await_stage("ppo")
    for step, seconds in ((2, -3600), (4, 86400)):
        settled(lambda step=step: checkpoint(run, step), f"step {step}", every=0.02)
        with ahead.open("r+b") as file:
            file.write(struct.pack("q", seconds))
    assert run.ended()["type"] == "COMPLETED"
    assert_whole(run, expected, reused=4)
    ppo = last_ppo(run)
    assert 12 * 3600 < ppo.end - ppo.start < 48 * 3600  # it had that clock
    for child in run.children():
        assert child.reused == "true" or 0 < child.metrics["seconds"] < 3600
    assert 0 < run.record()["ppo"]["seconds"] < 3600


# ---------------------------------------------------------------- cancelled


def cancelled(run: FlowRun, stage: str) -> float:
    """Cancel in the middle of the stage; the seconds until the last process is gone."""
    assert len(run.processes()) > 0
    start = time.monotonic()
    run.cancel()
    settled(lambda: not run.processes(), "the end of the processes", 120, every=0.05)
    seconds = time.monotonic() - start
    assert run.ended()["type"] == "CANCELLED"
    settled(lambda: run.parents()[0].status == "KILLED", "the end of the runs in MLflow", 60)
    assert [child.status for child in run.children() if child.stage == stage][-1] == "KILLED"
    assert not [child for child in run.children() if child.status == "RUNNING"]
    tell({"cancelled": stage, "seconds": round(seconds, 1)})
    return seconds


def test_a_cancelled_run_is_gone_soon_and_goes_on_when_tried_again(servers, expected):
    run = servers.trigger("cancelled", folder="cancelled")
    run.await_stage("base_model")
    seconds = [cancelled(run, "base_model")]
    run.retry()
    run.await_stage("ppo")
    settled(lambda: checkpoint(run, 2), "a checkpoint", every=0.02)
    seconds.append(cancelled(run, "ppo"))
    assert checkpoint(run, 2)
    run.retry()
    settled(lambda: run.state["type"] == "COMPLETED", "the retried run")
    assert_whole(run, expected)
    assert int(last_ppo(run).tags["resumed_at_step"]) >= 2
    assert max(seconds) < GONE, seconds
