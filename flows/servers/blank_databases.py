"""Empty SQLite databases with their tables made, cached for new run folders.

Prefect and MLflow create a new database by running every migration of their history: six seconds of CPU time, and up to
a minute on a slow disk. The cache is $RLHF_CACHE_DIR (~/.cache/rlhf), one file per library and version.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

from flows.servers import environment

# what a new database has of its own folder, and the library makes anew where it is missing; what it has once it is used
_OWN = {"mlflow": "experiments", "prefect": "configuration"}
_RUNS = {"mlflow": "runs", "prefect": "flow_run"}


def provide() -> dict[str, Path]:
    """Put cached databases where embedded ones are configured and missing. Returns the ones not in the cache yet, by
    library, to be passed to `keep` once the libraries have made them."""
    missing = {}
    for library, database in _embedded().items():
        there = any(database.parent.glob(f"{database.name}*"))  # a journal alone would be played into the copy
        if not there and not _copied(_kept(library), database):
            missing[library] = database
    return missing


def keep(new: Mapping[str, Path]) -> None:
    """Add newly made databases to the cache; failures are ignored."""
    for library, database in new.items():
        kept = _kept(library)
        copy = kept.with_name(f".{kept.name}-{os.getpid()}")
        with suppress(OSError, sqlite3.Error):
            kept.parent.mkdir(parents=True, exist_ok=True)
            try:
                with closing(sqlite3.connect(database)) as made, closing(sqlite3.connect(copy)) as blank:
                    made.backup(blank)
                    if blank.execute(f"SELECT 1 FROM {_RUNS[library]} LIMIT 1").fetchone():
                        continue  # another command in the same folder was quicker
                    blank.execute(f"DELETE FROM {_OWN[library]}")
                    blank.commit()
                    blank.execute("PRAGMA journal_mode = DELETE")  # one file
                copy.replace(kept)
            finally:
                copy.unlink(missing_ok=True)


def _copied(kept: Path, database: Path) -> bool:
    copy = database.with_name(f".{database.name}-{os.getpid()}")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, copy)
        with suppress(FileExistsError):  # whoever was quicker has begun to use it
            os.link(copy, database)
        return True
    except OSError:
        return False
    finally:
        with suppress(OSError):
            copy.unlink()


def _embedded() -> dict[str, Path]:
    found = {}
    store = os.environ["MLFLOW_TRACKING_URI"]
    if store.startswith("sqlite:///") and "?" not in store:
        found["mlflow"] = Path(store.removeprefix("sqlite:///"))
    elsewhere = (f"PREFECT_{part}_DATABASE_CONNECTION_URL" for part in ("SERVER", "API"))
    if environment.prefect_api() is None and not any(map(environment.prefect_setting, elsewhere)):
        found["prefect"] = Path(os.environ.get("PREFECT_HOME", environment.run_dir() / "prefect")) / "prefect.db"
    return found


def _kept(library: str) -> Path:
    cache = os.environ.get("RLHF_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "rlhf")
    return Path(cache).expanduser() / f"{library}-{version(library)}.db"
