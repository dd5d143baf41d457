"""A reward function in a process of its own, for answers that may do harm: code that is run, an endless expression.

It costs one answer's score at most: each is a call of its own, with limits of time and memory, and a process that
breaks them is killed with all that it has started; the next answer gets a fresh one. It has no network, no secrets in
its environment and an empty folder to work in. It can read files: it is no jail for code that is out to do harm.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import subprocess
import sys
import tempfile
import time
import weakref
from typing import TYPE_CHECKING, Any

from rlhf_lib import errors
from rlhf_lib.conversation import Conversation
from rlhf_lib.credentials import redact
from rlhf_lib.errors import DataError, ModelError, RecipeError, RewardFailed, RLHFError
from rlhf_lib.rewards import checked_terms, worker
from rlhf_lib.rewards.calling import Columns, read_columns, required_columns
from rlhf_lib.rewards.function import KEY, check_columns, import_reward

if TYPE_CHECKING:
    from rlhf_lib.recipe.reward import IsolateConfig

logger = logging.getLogger(__name__)

STARTING = 120.0  # seconds that the process may take to import the function
ENDING = 10.0  # seconds for its keeper to end what it has started
PASSED = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV"}  # and LC_*


class OverLimit(Exception):
    """The process took too long for an answer, or didn't outlive it."""


class IsolatedFunction:
    """As `FunctionReward`, isolated; `timeouts` counts the answers without a score of the function's own, which get
    `timeout_score`: it took too long or too much memory, or its process died.

    Raises RecipeError where the machine doesn't allow it, besides what `FunctionReward` raises.
    """

    reads_columns = True

    def __init__(self, path: str, settings: IsolateConfig) -> None:
        self.path, self.settings, self.function = path, settings, import_reward(path)
        self.timeouts = 0
        self.process: Process | None = None

    def __call__(
        self, queries: list[str], responses: list[str], *, columns: Columns | None = None
    ) -> list[float | None]:
        """One score per (query, response); `columns` as in `sampled_scores`."""
        columns, settings = columns or {}, self.settings
        check_columns(self.path, required_columns(self.function), columns)
        read = {name: values for name, values in read_columns(self.function, columns).items() if values is not None}
        scores: list[float | None] = []
        over = 0
        for row, (query, response) in enumerate(zip(queries, responses, strict=True)):
            told = self._request(query, response, {name: values[row] for name, values in read.items()})
            try:
                given = self._ask(told)
            except OverLimit:
                over += 1
                scores.append(settings.timeout_score)
            else:
                scores += checked_terms(given, [query], [response], f"function {self.path}")
        if over:
            self.timeouts += over
            logger.warning(
                "%s %s: %d of %d answers took more than %g s or %d MB, or ended its process: they score %g",
                KEY,
                self.path,
                over,
                len(responses),
                settings.seconds,
                settings.memory_mb,
                settings.timeout_score,
            )
        return scores

    def _request(self, query: str, response: str, columns: dict[str, Any]) -> bytes:
        asked = query.messages if isinstance(query, Conversation) else query
        try:
            return json.dumps({"query": asked, "response": response, "columns": columns}).encode() + b"\n"
        except (TypeError, ValueError):
            name = next(name for name, value in columns.items() if not _is_json(value))
            raise DataError(
                f"reward.isolate: the column {name} holds {columns[name]!r:.80}, which can't be passed to another "
                "process as JSON: leave it out of data.prompts.columns, or set reward.isolate to false"
            ) from None

    def _ask(self, request: bytes) -> Any:
        if self.process is None:
            self.process = Process(self.path, self.settings)
        try:
            reply = self.process.ask(request, self.settings.seconds)
        except BaseException:
            self.process.end()
            self.process = None
            raise
        if "error" in reply:
            raise raised(reply)
        return reply["given"]


class Process:
    """A started worker.py, ready to answer. Raises RecipeError where it can't be had, and what importing the function
    raises."""

    def __init__(self, path: str, settings: IsolateConfig) -> None:
        told = {"function": path, "memory_mb": settings.memory_mb, "network": settings.network}
        if sys.platform != "linux":
            raise RecipeError(f"reward.isolate needs Linux, and this is {sys.platform}: set it to false")
        with contextlib.ExitStack() as opened:
            folder = opened.enter_context(
                tempfile.TemporaryDirectory(prefix="rlhf-reward-", ignore_cleanup_errors=True)
            )
            said = opened.enter_context(tempfile.TemporaryFile())
            popen = subprocess.Popen(
                [sys.executable, "-P", "-m", worker.__name__, json.dumps(told)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                cwd=folder,
                env=environment(folder),
                start_new_session=True,  # Ctrl-C is for this process
            )
            assert popen.stdin is not None
            assert popen.stdout is not None
            self.requests, self.replies = popen.stdin, popen.stdout
            opened.callback(_end, popen)
            try:
                ready = self._reply(STARTING)
            except OverLimit:
                said.seek(0)
                tail = " ".join(said.read().decode(errors="replace").split()[-40:]) or "it said nothing"
                raise RewardFailed(
                    f"{KEY} {path}: its process for reward.isolate ended or wasn't ready in {STARTING:.0f} s: {tail}"
                ) from None
            if "refused" in ready:
                raise RecipeError(
                    "reward.isolate: this machine doesn't let processes have namespaces of their own "
                    f"({ready['refused']}), which keep the function from the network: set reward.isolate.network to "
                    "true, or allow unprivileged user namespaces"
                )
            if "error" in ready:
                raise raised(ready)
            self.end = weakref.finalize(self, opened.pop_all().close)

    def ask(self, request: bytes, seconds: float) -> dict[str, Any]:
        """The reply to a request. Raises OverLimit where there is none in time."""
        try:
            self.requests.write(request)
            self.requests.flush()
        except OSError:
            raise OverLimit from None
        reply = self._reply(seconds)
        if "memory" in reply:
            raise OverLimit
        return reply

    def _reply(self, seconds: float) -> dict[str, Any]:
        line, ends = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.replies, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, ends - time.monotonic())):
                    raise OverLimit
                read = os.read(self.replies.fileno(), 65536)
                if not read:
                    raise OverLimit
                line += read
        return json.loads(line)


def _end(popen: subprocess.Popen[bytes]) -> None:
    """Close the pipe of requests, at which the keeper ends everything, and wait for it."""
    for pipe in (popen.stdin, popen.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()
    try:
        popen.wait(ENDING)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()


def environment(folder: str) -> dict[str, str]:
    """What the process has of this one's: where programs and modules lie, who one is, the language. No secrets."""
    kept = {name: value for name, value in os.environ.items() if name in PASSED or name.startswith("LC_")}
    kept = {name: value for name, value in kept.items() if redact(value) == value}
    modules = os.pathsep.join(os.path.abspath(place) for place in (*sys.path, os.getcwd()))
    return kept | {"PYTHONPATH": modules, "TMPDIR": folder}


def raised(reply: dict[str, Any]) -> RLHFError:
    """What the function's process met with, as it would be raised here."""
    kind = getattr(errors, reply["error"], ModelError)
    return kind(reply["message"])


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
