"""What a stage logs to MLflow while it computes: sent in order by a separate thread, and kept until it has arrived.

Training neither waits for the tracking server nor fails because it is away for a while. A metric that is sent twice,
because the answer to the first attempt was lost, counts once: it carries the time of the call.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

import mlflow
from mlflow.entities import Metric

from tasks.tracking.retries import is_retryable

PATIENCE = 900.0  # seconds that the end of a stage waits for the tracking server
_BATCH = 1000  # metrics in a request: MLflow's own limit
_GATHER = 5.0  # seconds from one request to the next: one alone costs MLflow as much as three steps' metrics in another
_TRIES = 3  # at what MLflow refuses
_LONGEST = 10.0  # seconds between tries

logger = logging.getLogger(__name__)


class MetricsBuffer:
    """Metrics and calls that wait to be sent to one MLflow run.

    If MLflow refuses one for good, the next call raises its error.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._client = mlflow.MlflowClient()
        self._waiting: deque[list[Metric] | Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._flushing = False
        self._closed = False

    def metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send a step's metrics, stamped with the current time."""
        now = int(time.time() * 1000)
        self._put([Metric(name, float(value), now, step or 0) for name, value in metrics.items()])

    def call(self, function: Callable[[], object]) -> None:
        """Call the function, retrying it if it fails: calling it twice must do no harm."""
        self._put(function)

    def flush(self, patience: float = PATIENCE) -> None:
        """Return when everything has arrived. Raises ConnectionError after `patience` seconds."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting or self._error is not None, patience)
            self._flushing = False
            if self._error is not None:
                raise self._error
            if self._waiting:
                raise ConnectionError(
                    f"MLflow at {mlflow.get_tracking_uri()} has not accepted the run's metrics for {patience:.0f} s: "
                    "check that its server is up and has disk space, then start the run again: it resumes"
                )

    def close(self) -> None:
        """End the thread; anything still waiting is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _put(self, item: list[Metric] | Callable[[], object]) -> None:
        if self._error is not None:
            raise self._error
        with self._changed:
            self._waiting.append(item)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow-metrics", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        tries, again = 0, time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._changed.wait_for(lambda: self._flushing or self._closed, max(0.0, again - time.monotonic()))
                if self._closed:
                    return
                batch = self._next()
            try:
                if callable(batch[0]):
                    batch[0]()
                else:
                    self._client.log_batch(self.run_id, [metric for metrics in batch for metric in metrics])
            except Exception as error:
                tries += 1
                if tries >= _TRIES and not is_retryable(error):
                    with self._changed:
                        self._error = error
                        self._changed.notify_all()
                    return
                if tries == 1:
                    logger.warning(
                        "MLflow doesn't accept the run's metrics; they are kept here until it does: %s", error
                    )
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, min(0.5 * 2**tries, _LONGEST))
                continue
            if tries:
                logger.warning("MLflow accepts the run's metrics again; none was lost")
            tries, again = 0, time.monotonic() + _GATHER
            with self._changed:
                for _ in batch:
                    self._waiting.popleft()
                self._changed.notify_all()

    def _next(self) -> list[list[Metric]] | list[Callable[[], object]]:
        """The first call, or as many of the first metrics as fit into one request."""
        first, *others = self._waiting
        if callable(first):
            return [first]
        batch, size = [first], len(first)
        for item in others:
            if callable(item) or size + len(item) > _BATCH:
                break
            batch.append(item)
            size += len(item)
        return batch
