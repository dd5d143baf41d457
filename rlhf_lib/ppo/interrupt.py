"""SIGINT or SIGTERM in the middle of PPO: the run ends with its last completed step on disk.

While responses are sampled and scored nothing learns, so the step is abandoned at once and the boundary before it is
saved. Once learning has begun that boundary is gone, and a copy of the weights and the optimizer's moments, kept for
this alone, would take three times the policy's memory: that step is finished, and the boundary after it saved. A
second SIGINT doesn't wait. Where that or a SIGKILL ends the process, the last checkpoint stands.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rlhf_lib.ppo.checkpoint import random_states, set_random_states
from rlhf_lib.ppo.parallel import Processes
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.progress import note

if TYPE_CHECKING:
    import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def announce(number: int) -> None:
    """Show beside the progress that the run ends soon, and by which signal sooner."""
    note("stops after this step" + (" (Ctrl-C again: at once)" if number == signal.SIGINT else ""))


class Abandoned(BaseException):
    """The step under way is given up. No Exception: a reward's own `except Exception` must let it through."""


class Request:
    """A wish to end, which a signal brings. `number` is the first signal that came; 0: none has."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.number != 0

    @contextmanager
    def catching(self, wanted: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Inside the block signals are noted here, and `wanted` is called at the first; outside the main thread, where
        no signal arrives, and for signals that are ignored, nothing changes."""
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
        self._previous = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}

        def on_signal(number: int, _frame: Any) -> None:
            if number == signal.SIGINT:  # the next one ends the process at once; a notebook's is interrupted as ever
                ours = self._previous[number] is not signal.default_int_handler
                signal.signal(number, signal.SIG_DFL if ours else signal.default_int_handler)
            if not self.number:
                self.number = number
                wanted()

        for number in self._previous:
            signal.signal(number, on_signal)
        try:
            yield
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def pass_on(self) -> None:
        """Give the signal to the handler that was there before: by default the process ends by it."""
        if self.number:
            signal.raise_signal(self.number)
            raise SystemExit(128 + self.number)  # the handler before let it pass


class Window:
    """`with window():` round the part of a step in which nothing learns.

    `asked`: another way than a signal to ask for the end; it is looked at where a window opens.
    """

    def __init__(self, processes: Processes, device: torch.device, asked: Callable[[], bool] = lambda: False) -> None:
        self.processes, self.device, self.asked = processes, device, asked
        self.request = Request()
        self.left = self.failed = self.open = False
        self.boundary: dict[str, Any] = random_states(device)  # a reward may have drawn since

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.boundary = random_states(self.device)
        self.open = True
        try:
            if self.processes.any(bool(self.request) or self.asked()):
                raise Abandoned
            yield
        except Exception:
            self.failed = True
            raise
        finally:
            self.open = False

    def on_signal(self) -> None:
        """Abandon the step inside the window, at once; elsewhere when it next opens."""
        if self.open and self.processes.count == 1:  # of several, all must leave at the same place
            raise Abandoned
        announce(self.request.number)


@contextmanager
def stop_at_boundary(
    trainer: PPOTrainer, save: Callable[[], object], asked: Callable[[], bool] = lambda: False
) -> Iterator[Window]:
    """Inside the block SIGINT and SIGTERM lead to `save()` at a step boundary, after which the handler that was there
    before has the signal: by default the process ends by it, under Prefect the run is cancelled or has crashed. Where
    `asked()` is what ended the steps, the block just ends, with `left` true. An error while sampling or scoring, as a
    reward may raise, leads to `save()` too, and goes on.

    Whatever belongs to a step (history, best weights) must be kept before the next one is asked for.
    """
    window = Window(trainer.processes, trainer.policy.device, asked)
    trainer.rollout_window = window
    with window.request.catching(window.on_signal):
        try:
            yield window
        except Abandoned:
            set_random_states(window.boundary, window.device)
            window.left = True
        except Exception:
            if window.failed and trainer.processes.count == 1:  # of several, the others know nothing of it
                set_random_states(window.boundary, window.device)
                save()
            raise
        if window.request or window.left:
            save()
    window.request.pass_on()
