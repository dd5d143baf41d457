"""Figures that wait while a real MLflow server is away, and arrive once each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
import pytest
from mlflow.entities import Metric
from operated import free_port, settled

from flows.servers.services import await_page
from tasks.tracking.metrics_buffer import MetricsBuffer


def history(run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in mlflow.MlflowClient().get_metric_history(run_id, name))


@contextmanager
def served(folder, port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen([*command, "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"], cwd=folder)
    try:
        await_page(
            f"http://127.0.0.1:{port}/health",
            "MLflow",
            lambda: None if server.poll() is None else "MLflow",
            lambda _: "its message is above",
        )
        yield
    finally:
        server.terminate()
        server.wait(timeout=120)


def test_nothing_is_missing_or_doubled_after_the_server_was_away(mlflow_store, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    port = free_port()
    with mlflow_store(tmp_path):
        run_id = mlflow.MlflowClient().create_run("1").info.run_id
        mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
        buffer = MetricsBuffer(run_id)
        for step in range(1, 41):
            buffer.metrics({f"{name}": 3.0 / step for name in ("loss", "kl")}, step)
        buffer.call(lambda: mlflow.log_dict({"whole": True}, "samples.json", run_id=run_id))
        with pytest.raises(ConnectionError, match="has not accepted the run's metrics for 3 s"):
            buffer.flush(3)
        assert "they are kept here until it does" in caplog.text
        with served(tmp_path, port):
            buffer.flush(60)
            buffer.close()
            assert history(run_id, "loss") == [(step, 3.0 / step) for step in range(1, 41)]
            assert history(run_id, "kl") == history(run_id, "loss")
            first = next(p for p in mlflow.MlflowClient().get_metric_history(run_id, "loss") if p.step == 1)
            mlflow.MlflowClient().log_batch(run_id, [Metric("loss", 3.0, first.timestamp, 1)])  # its answer was lost
            assert len(history(run_id, "loss")) == 40
            found = mlflow.MlflowClient().list_artifacts(run_id)
        assert [file.path for file in found] == ["samples.json"]
        assert "none was lost" in caplog.text


def test_the_first_figures_go_at_once_and_the_next_together(mlflow_store, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.tracking.metrics_buffer._GATHER", 600.0)
    with mlflow_store(tmp_path), mlflow.start_run() as run:
        buffer, requests = MetricsBuffer(run.info.run_id), []
        log_batch = buffer._client.log_batch
        monkeypatch.setattr(buffer._client, "log_batch", lambda *words: (log_batch(*words), requests.append(words[1])))
        buffer.metrics({"loss": 1.0}, 1)
        settled(lambda: requests, "the first step's figures")
        for step in range(2, 31):
            buffer.metrics({"loss": 1.0 / step}, step)
        buffer.flush(60)
        buffer.close()
        assert [len(figures) for figures in requests] == [1, 29]
        assert history(run.info.run_id, "loss") == [(step, 1.0 / step) for step in range(1, 31)]


def test_what_mlflow_refuses_is_an_error_of_the_stage(mlflow_store, tmp_path):
    with mlflow_store(tmp_path), mlflow.start_run() as run:
        buffer = MetricsBuffer(run.info.run_id)
        buffer.metrics({"no such name?": 1.0})
        with pytest.raises(mlflow.MlflowException, match="no such name"):
            buffer.flush(60)
        with pytest.raises(mlflow.MlflowException, match="no such name"):
            buffer.metrics({"loss": 1.0})
