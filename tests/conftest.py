"""What the tests share: an environment of their own, one Prefect server, MLflow stores, and the real data at hand.

Everything below is set before anything imports prefect, mlflow or torch, which read it at import.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_HOME = Path(tempfile.mkdtemp(prefix="rlhf-tests-"))
_CACHE = os.environ["RLHF_CACHE_DIR"] if "PYTEST_XDIST_WORKER" in os.environ else str(_HOME / "cache")  # one for all
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_"))]:
    del os.environ[_name]  # the servers of whoever runs the tests are none of theirs
os.environ |= {
    "RLHF_RUN_DIR": str(_HOME / "runs"),
    "RLHF_CACHE_DIR": _CACHE,
    "MLFLOW_TRACKING_URI": f"sqlite:///{_HOME}/mlflow.db",
    "PREFECT_HOME": str(_HOME / "prefect"),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_CACHE": str(_HOME / "hub"),
    "MPLBACKEND": "agg",
}
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the other core is another worker's
os.environ.setdefault("OMP_NUM_THREADS", "2")

from flows.cli.configure import configure  # noqa: E402

configure()  # no telemetry, no spinning threads, start-up limits: the tests' settings too
import prefect.main  # noqa: E402, F401 - its log handler keeps the stderr it first sees: not one that ends with a test


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server on a database of its own, for whatever runs flows and tasks through the engine."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture(scope="session")
def mlflow_store() -> Callable[[Path], object]:
    """`with mlflow_store(folder):` MLflow on a new SQLite store in the folder, runs going to an experiment of its own.

    MLflow takes ten seconds to build its tables, so that is done once and copied.
    """
    import mlflow

    empty = _HOME / "empty.db"
    mlflow.MlflowClient(f"sqlite:///{empty}").search_experiments()

    @contextmanager
    def opened(folder: Path) -> Iterator[None]:
        before = mlflow.get_tracking_uri()
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(empty, folder / "mlflow.db")
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment(
            experiment_id=mlflow.create_experiment("tests", artifact_location=(folder / "artifacts").as_uri())
        )
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)

    return opened


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder that holds data/ and models/, see RLHF_TEST_ASSETS."""
    folder = Path(os.environ.get("RLHF_TEST_ASSETS", "/nonexistent"))
    if not (folder / "data").is_dir():
        pytest.skip("RLHF_TEST_ASSETS doesn't name a folder with data/ and models/")
    return folder.absolute()
