"""The run folder, which pipelines share that run at once or after each other.

    work/PARENT/STAGE       what a stage of that run made, or a link to what it reused
    stages/STAGE-KEY        link to the newest finished one with that key
    unfinished/STAGE-KEY    the same of stages that every pipeline does anew: until the one that did it has finished
    checkpoints/KEY         PPO's, until it ends
    locks/                  of stages; work/PARENT/.running is that of a pipeline
    removing/               what is being removed
    verdicts.sqlite         what language models said as judges, for all runs; and how much each run has asked

Locks are the operating system's: they end with the process that holds them, however it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tasks.tracking import run_logger

if TYPE_CHECKING:
    from rlhf_lib.evaluation.llm.verdicts import Verdicts

RECORD = "record.json"
_RUNNING = ".running"


def open_verdicts(root: str | Path) -> Verdicts:
    """The verdicts of language models that all runs here share."""
    from rlhf_lib.evaluation.llm.verdicts import Verdicts

    return Verdicts(Path(root) / "verdicts.sqlite")


@contextmanager
def file_lock(root: Path, name: str) -> Iterator[None]:
    """Inside the block, no other process holds the lock of that name; others wait."""
    with _locked(root / "locks" / f"{name}.lock", f"{name}: another run here is doing the same, and is waited for"):
        yield


@contextmanager
def running(root: Path, parent: str) -> Iterator[None]:
    """Mark the pipeline as running for as long as its process lives. The mark of one that fails stays, without a lock,
    so that the next to start clears up after it."""
    mark = root / "work" / parent / _RUNNING
    with _locked(mark, f"an earlier attempt at run {parent} is still running, and is waited for"):
        yield
        mark.unlink()


@contextmanager
def _locked(file: Path, waiting: str) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    if not _free(lock):
        run_logger().info(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _free(lock: FileLock) -> bool:
    """Take the lock if it is free."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


@contextmanager
def unless_locked(root: Path, name: str) -> Iterator[bool]:
    """Hold the lock of that name during the block if no one has it; else yield False at once."""
    file = root / "locks" / f"{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    free = _free(lock)
    try:
        yield free
    finally:
        lock.release()


@contextmanager
def unless_running(root: Path, parent: str) -> Iterator[bool]:
    """Keep a new attempt at a failed pipeline from starting during the block; yield False at once if one is running."""
    mark = root / "work" / parent / _RUNNING
    if not mark.is_file():
        yield True
        return
    lock = FileLock(mark)
    free = _free(lock)
    try:
        yield free
    finally:
        lock.release()


def is_running(root: Path, parent: str) -> bool:
    """Whether a process, on this machine or on one that shares the folder, is working on the pipeline."""
    mark = root / "work" / parent / _RUNNING
    if not mark.is_file():
        return False
    lock = FileLock(mark)
    if not _free(lock):
        return True
    lock.release()
    return False


def is_marked(root: Path, parent: str) -> bool:
    """Whether the pipeline is running, or failed or was killed and nothing has cleared up after it yet."""
    return (root / "work" / parent / _RUNNING).is_file()


def abandoned(root: Path) -> Iterator[str]:
    """The parent ids of pipelines that failed or whose process is gone. Their unfinished stages are removed, to make
    room."""
    for mark in (root / "work").glob(f"*/{_RUNNING}"):
        lock = FileLock(mark)
        try:
            if not _free(lock):
                continue
        except FileNotFoundError:
            continue  # its folder is gone meanwhile
        try:
            for folder in mark.parent.iterdir():
                if folder.is_dir() and not (folder / RECORD).is_file():
                    shutil.rmtree(folder)
            yield mark.parent.name
            mark.unlink(missing_ok=True)
        finally:
            lock.release()


def finished(folder: Path) -> dict[str, Any] | None:
    """The record of a finished stage; None for any other."""
    file = folder / RECORD
    return json.loads(file.read_text()) if file.is_file() else None


def emptied(folder: Path) -> Path:
    """The folder, emptied."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def finish(folder: Path, record: dict[str, Any]) -> None:
    """Write the record, atomically and last: it says that everything else is there."""
    scratch = folder / f"{RECORD}.tmp"
    scratch.write_text(json.dumps(record, indent=1))
    scratch.replace(folder / RECORD)


def link(place: Path, target: Path) -> None:
    """Make `place` a link to the target, atomically, replacing whatever was there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    scratch = place.with_name(f".{place.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(os.path.relpath(target.resolve(), place.parent.resolve()))
    scratch.replace(place)


def forget(root: Path, parent: str) -> None:
    """The parent's pipeline has finished: drop what an interrupted one would have resumed from."""
    done = {folder.resolve() for folder in (root / "work" / parent).iterdir() if folder.is_dir()}
    for place in (root / "unfinished").glob("*"):
        if place.resolve() in done:
            place.unlink(missing_ok=True)


def stage_folders(root: Path) -> dict[Path, set[str]]:
    """Every stage's folder, with the ids of the pipelines that made or reused it."""
    users: dict[Path, set[str]] = {}
    for place in (root / "work").glob("*/*"):
        if place.is_dir():
            users.setdefault(place.resolve(), set()).add(place.parent.name)
    return users


def discard(root: Path, folder: Path) -> None:
    """Remove a folder at one stroke: killed in the middle, what is left is not in its place any more."""
    scratch = root / "removing" / uuid.uuid4().hex
    scratch.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(scratch)
    shutil.rmtree(scratch, ignore_errors=True)


def tidy(root: Path) -> None:
    """Remove what an interrupted `discard` left, and links to what is gone."""
    shutil.rmtree(root / "removing", ignore_errors=True)
    for pattern in ("stages/*", "unfinished/*", "work/*/*"):
        for place in root.glob(pattern):
            if place.is_symlink() and not place.exists():
                place.unlink(missing_ok=True)


def size(folder: Path) -> int:
    """Bytes of all files in a folder, without what it links to."""
    return sum(file.stat().st_size for file in _files(folder))


def changed(folder: Path) -> float:
    """When the newest file in a folder was written, in seconds since the epoch; of an empty one, when it was made."""
    return max((file.stat().st_mtime for file in _files(folder)), default=folder.stat().st_mtime)


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
