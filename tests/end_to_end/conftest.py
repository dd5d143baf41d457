import pytest


@pytest.fixture(scope="module")
def run_dir(prefect_server, mlflow_store, tmp_path_factory):
    """A run folder and an MLflow store of the module's own."""
    folder = tmp_path_factory.mktemp("end-to-end")
    with mlflow_store(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUN_DIR", str(folder))
        yield folder
