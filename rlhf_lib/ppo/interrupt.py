"""SIGTERM in the middle of PPO: the run ends with its last step boundary on disk.

While responses are sampled and scored nothing learns, so the step is abandoned at once and the boundary before it is
written. Once the learning has begun that boundary is gone, and a copy of the weights and of the optimizer's moments for
the sake of this would take three times the policy's memory: that step is finished, and the boundary after it written.
Where a SIGKILL doesn't wait for it, the last checkpoint stands, and the resumed run ends with the same metrics.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rlhf_lib.ppo.checkpoint import random_states, set_random_states
from rlhf_lib.ppo.parallel import Processes
from rlhf_lib.ppo.trainer import PPOTrainer


class Abandoned(BaseException):
    """The step under way is given up. No Exception: a reward's own `except Exception` must let it through."""


class Window:
    """`with window():` round the part of a step in which nothing learns."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.requested = self.open = False
        self.boundary: dict[str, Any] = random_states()  # a reward may have drawn since

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.boundary = random_states()
        self.open = True
        try:
            if self.processes.any(self.requested):
                self.requested = True
                raise Abandoned
            yield
        finally:
            self.open = False

    def on_signal(self, *_: Any) -> None:
        """Abandon the step inside the window, at once; elsewhere when it next opens."""
        first, self.requested = not self.requested, True
        if first and self.open and self.processes.count == 1:  # of several, all must leave at the same place
            raise Abandoned


@contextmanager
def boundary_on_sigterm(trainer: PPOTrainer, save: Callable[[], object]) -> Iterator[None]:
    """Inside the block SIGTERM leads to `save()` at a step boundary, after which the handler that was there before has
    the signal: by default the process ends by it, under Prefect the run is cancelled or has crashed.

    Whatever belongs to a step (history, best weights) must be kept before the next one is asked for. Does nothing
    outside the main thread, where no signal arrives, and where SIGTERM is ignored.
    """
    previous = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or previous in (signal.SIG_IGN, None):
        yield
        return
    window = Window(trainer.processes)
    trainer.rollout_window = window
    signal.signal(signal.SIGTERM, window.on_signal)
    try:
        try:
            yield
        except Abandoned:
            set_random_states(window.boundary)
        if window.requested:
            save()
    finally:
        signal.signal(signal.SIGTERM, previous)
    if window.requested:
        signal.raise_signal(signal.SIGTERM)
        raise SystemExit(128 + signal.SIGTERM)  # the handler before let it pass
