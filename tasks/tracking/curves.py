"""PPO's curves on the pipeline's run too, so that MLflow's list and comparison of runs can draw them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import mlflow
from mlflow.entities import Metric

from tasks.tracking.views import CURVES

_GATHER = 5.0  # seconds between requests
_BATCH = 1000  # metrics in one: MLflow's own limit


class Curves:
    """The metrics in CURVES by step, sent to the run `run_id` through `later`, which calls what it is given in time.

    A run that an interrupted PPO has drawn a part of already gets the rest.
    """

    def __init__(self, run_id: str, later: Callable[..., object]) -> None:
        self.run_id, self._later = run_id, later
        self._drawn = drawn(run_id)
        self._waiting: list[Metric] = []
        self._sent = time.monotonic()

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self._drawn:
            now = int(time.time() * 1000)
            self._waiting += [Metric(name, float(metrics[name]), now, step) for name in CURVES]
            if time.monotonic() - self._sent > _GATHER:
                self.flush()

    def flush(self) -> None:
        self._later(partial(send, self.run_id, self._waiting))
        self._waiting, self._sent = [], time.monotonic()


def copy(source: str, target: str) -> None:
    """Draw the curves of one run on another, as far as they aren't there."""
    known = drawn(target)
    send(target, [point for name in CURVES for point in _history(source, name) if point.step > known])


def drawn(run_id: str) -> int:
    """The last step that a run's curves show; 0 where they show none."""
    return max((point.step for point in _history(run_id, CURVES[-1])), default=0)


def _history(run_id: str, name: str) -> list[Metric]:
    return list(mlflow.MlflowClient().get_metric_history(run_id, name))


def send(run_id: str, metrics: list[Metric]) -> None:
    """Log them all: if one is sent again with its time, it counts once."""
    for first in range(0, len(metrics), _BATCH):
        mlflow.MlflowClient().log_batch(run_id, metrics[first : first + _BATCH])
