"""What a reward function of the user's own raises, as one line with the user's own stack frames."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_lib.errors import RewardFailed, RLHFError

_PACKAGES = ("rlhf_lib", "tasks", "flows")
_ROOT = Path(__file__).parents[2]
# the standard library and installed packages
_INSTALLED = {Path(path).resolve() for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))}


@contextmanager
def explained(what: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Raise whatever the block raises as RewardFailed: "WHAT raised TYPE: MESSAGE", then the user's frames.

    Errors of our own and those in `passing` stay as they are.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, (RLHFError, *passing)):
            raise
        told = " ".join(str(error).split())
        name = type(error).__name__
        raise RewardFailed(f"{what} raised {name}{f': {told:.300}' if told else ''}\n{user_frames(error)}") from error


def user_frames(error: BaseException) -> str:
    """The error's stack frames in files that are neither ours nor installed, as Python prints them; without any such,
    the innermost frame. A syntax error has its own place in the user's file."""
    if isinstance(error, SyntaxError):
        return "".join(traceback.format_exception_only(error)[:-1]).rstrip()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _of_the_user(frame.filename)]
    return "".join(traceback.format_list(own or frames[-1:])).rstrip()


def _of_the_user(file: str) -> bool:
    if file.startswith("<"):
        return False
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & {*path.parts}:
        return False
    return not any(path.is_relative_to(folder) for folder in (*(_ROOT / name for name in _PACKAGES), *_INSTALLED))
