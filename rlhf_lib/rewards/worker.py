"""The process that an isolated reward function runs in: python -m rlhf_lib.rewards.worker SETTINGS.

Two processes: a keeper, and its child, which imports the function and answers. The child is the first process of
namespaces of its own, so that whatever it has started ends with it; where the machine doesn't allow these, and the
network is allowed, the keeper adopts what the child leaves behind, and ends it. Both end when the pipe of requests is
closed.

A line of JSON per request (one answer) on standard input, a line of JSON per reply on standard output.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import resource
import select
import signal
import sys
from pathlib import Path
from typing import Any

from rlhf_lib.conversation import Conversation
from rlhf_lib.errors import RLHFError
from rlhf_lib.rewards.calling import call
from rlhf_lib.rewards.failure import explained
from rlhf_lib.rewards.function import KEY, import_reward

_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000  # flags of unshare(2)
_PDEATHSIG, _SUBREAPER, _NO_NEW_PRIVILEGES = 1, 36, 38  # options of prctl(2)


def main(settings: dict[str, Any]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    if not settings["network"] or _can_leave(libc):
        try:
            leave(libc, network=settings["network"])
        except OSError as error:
            print(json.dumps({"refused": error.strerror}), flush=True)
            return 1
    child = os.fork()
    if child == 0:
        libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)
        try:
            serve(settings)
        finally:
            os._exit(0)
    os.close(1)
    keep(child)
    return 0


def leave(libc: ctypes.CDLL, *, network: bool) -> None:
    """Go into namespaces of one's own, with the same user and group: of users, so that other processes can't be looked
    into, of processes (from the next child on) and, without `network`, of networks. Raises OSError."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEWUSER | _NEWPID | (0 if network else _NEWNET)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{file}", "w") as opened:
            opened.write(text)


def _can_leave(libc: ctypes.CDLL) -> bool:
    """Whether `leave` would succeed: tried by a child, as there is no way back."""
    child = os.fork()
    if child == 0:
        try:
            leave(libc, network=True)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def keep(child: int) -> None:
    """Wait until the child has ended or nobody asks any more, and end all that it has started."""
    poll = select.poll()
    poll.register(0, 0)  # its hanging up alone
    poll.register(os.pidfd_open(child), select.POLLIN)
    poll.poll()
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    end_children()


def end_children() -> None:
    """Kill all processes below this one, and wait for them."""
    while True:
        if os.getpid() == 1:  # of its namespace: all the others there are below it
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        elif lists := glob.glob("/proc/self/task/*/children"):
            for child in [int(pid) for file in lists for pid in Path(file).read_text().split()]:
                os.kill(child, signal.SIGKILL)
        else:
            return  # a kernel that doesn't tell them
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def serve(settings: dict[str, Any]) -> None:
    """Import the function, tell that, and answer requests until there are no more."""
    requests = os.fdopen(os.dup(0), "r")
    replies = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # the function's own
        os.dup2(nothing, standard)

    def reply(told: dict[str, Any]) -> None:
        replies.write(json.dumps(told) + "\n")
        replies.flush()

    path = settings["function"]
    try:
        function = import_reward(path)
    except RLHFError as error:
        reply({"error": type(error).__name__, "message": str(error)})
        return
    limit_memory(settings["memory_mb"])
    reply({"ready": True})
    for line in requests:
        asked = json.loads(line)
        query = Conversation(asked["query"]) if isinstance(asked["query"], list) else asked["query"]
        columns = {name: [value] for name, value in asked["columns"].items()}
        try:
            with explained(f"{KEY} {path}", passing=(MemoryError,)):
                given = call(function, [query], [asked["response"]], columns)
                told = {"given": plain(given)}
        except MemoryError:
            told = {"memory": True}
        except RLHFError as error:
            told = {"error": type(error).__name__, "message": str(error)}
        end_children()
        reply(told)


def limit_memory(megabytes: int) -> None:
    """Let this process, and each that it starts, have so much more address space than it has now."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def plain(given: Any) -> Any:
    """A function's scores as JSON can carry them: arrays become lists, and what isn't a number becomes its repr."""
    listed = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(listed, tuple):
        listed = list(listed)
    if isinstance(listed, list):
        return [_number(value) for value in listed]
    return repr(listed)


def _number(value: Any) -> float | str | None:
    if value is None:
        return None
    try:
        return repr(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return repr(value)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
