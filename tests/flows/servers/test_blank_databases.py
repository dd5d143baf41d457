"""A new run folder's databases: made once by their libraries, copied afterwards, never another folder's data."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from flows.servers import blank_databases


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Settings of an embedded run in `tmp_path/NAME`, with a cache that is empty."""
    monkeypatch.setenv("RLHF_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def enter(name: str) -> Path:
        monkeypatch.setenv("RLHF_RUN_DIR", str(tmp_path / name))
        monkeypatch.setenv("PREFECT_HOME", str(tmp_path / name / "prefect"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / name}/mlflow.db")
        return tmp_path / name

    return enter


def made_by_libraries(folder: Path) -> None:
    """Both databases as `rlhf run` has them before its first run."""
    (folder / "prefect").mkdir(parents=True, exist_ok=True)
    code = (
        "import asyncio; from prefect.server.database import provide_database_interface as database\n"
        "import mlflow; asyncio.run(database().create_db()); mlflow.MlflowClient().search_experiments()"
    )
    subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=True, capture_output=True)


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def test_the_second_folder_gets_what_the_first_one_made(folders) -> None:
    first = folders("first")
    new = blank_databases.provide()
    assert new == {"mlflow": first / "mlflow.db", "prefect": first / "prefect/prefect.db"}
    made_by_libraries(first)
    blank_databases.keep(new)

    second = folders("second")
    assert blank_databases.provide() == {}
    for name in ("mlflow.db", "prefect/prefect.db"):
        schema = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
        assert rows(second / name, schema) == rows(first / name, schema)
        assert rows(second / name, "SELECT * FROM alembic_version") == rows(
            first / name, "SELECT * FROM alembic_version"
        )
    assert sorted(path.name for path in second.rglob("*") if path.is_file()) == ["mlflow.db", "prefect.db"]

    databases = [second / "mlflow.db", second / "prefect/prefect.db"]
    before = [rows(database, "PRAGMA schema_version") for database in databases]
    made_by_libraries(second)
    assert [rows(database, "PRAGMA schema_version") for database in databases] == before  # no table made or changed
    found = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).search_experiments()
    assert [experiment.name for experiment in found] == ["Default"]


def test_a_database_that_is_there_stays(folders) -> None:
    for name in ("a", "b"):
        folder = folders(name)
        (folder / "prefect").mkdir(parents=True)
        for database in (folder / "mlflow.db", folder / "prefect/prefect.db"):
            database.write_bytes(b"mine")
        assert blank_databases.provide() == {}
        assert (folder / "mlflow.db").read_bytes() == b"mine"


def test_nothing_is_put_beside_the_journal_of_a_lost_database(folders) -> None:
    first = folders("first")
    first.mkdir()
    mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).search_experiments()
    blank_databases.keep({"mlflow": first / "mlflow.db"})
    second = folders("second")
    second.mkdir()
    (second / "mlflow.db-wal").write_bytes(b"of a database that is gone")
    blank_databases.provide()
    assert not (second / "mlflow.db").exists()


def test_a_used_database_is_not_kept(folders, tmp_path: Path) -> None:
    folder = folders("used")
    folder.mkdir()
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    client.create_run(client.create_experiment("of this folder"))
    blank_databases.keep({"mlflow": folder / "mlflow.db"})
    assert not list((tmp_path / "cache").rglob("*.db"))


def test_what_the_settings_put_elsewhere_is_left_alone(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    folders("a")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://127.0.0.1/prefect")
    assert blank_databases.provide() == {}
    monkeypatch.delenv("PREFECT_SERVER_DATABASE_CONNECTION_URL")
    assert list(blank_databases.provide()) == ["prefect"]
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    assert blank_databases.provide() == {}


def test_a_cache_that_cannot_be_written_is_done_without(folders, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    folder = folders("a")
    new = blank_databases.provide()
    assert set(new) == {"mlflow", "prefect"}
    folder.mkdir(exist_ok=True)
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    client.search_experiments()
    blank_databases.keep({"mlflow": folder / "mlflow.db"})
    assert blank_databases.provide() == {"prefect": folder / "prefect/prefect.db"}
