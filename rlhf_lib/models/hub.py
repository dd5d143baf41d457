"""Whether the Hugging Face hub answers, asked once and quickly: its libraries try for minutes and print each try."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants

ANSWER_WITHIN = 5.0  # seconds
ASK_AGAIN = 60.0  # seconds after a hub that didn't answer

_asked: dict[str, tuple[float, str | None]] = {}  # endpoint -> when, and what was wrong


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or https://huggingface.co."""
    return str(constants.ENDPOINT)


def unreachable() -> str | None:
    """Why the hub can't be asked; None where it answers, whatever it says.

    In offline mode (HF_HUB_OFFLINE) that is the reason and nothing is sent. Otherwise one HEAD request without retries;
    an answer counts for as long as the process lives, and silence for ASK_AGAIN seconds.
    """
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    when, reason = _asked.get(endpoint(), (-ASK_AGAIN, ""))
    if reason is None or time.monotonic() - when < ASK_AGAIN:
        return reason
    found: list[str | None] = []
    # in a thread of its own, since looking a name up knows no time limit
    asking = threading.Thread(target=lambda: found.append(_ask()), daemon=True)
    asking.start()
    asking.join(ANSWER_WITHIN)
    reason = found[0] if found else f"no answer within {ANSWER_WITHIN:g} s"
    _asked[endpoint()] = (time.monotonic(), reason)
    return reason


def _ask() -> str | None:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint(), timeout=ANSWER_WITHIN)
    except Exception as error:  # which HTTP library it is depends on the hub's version
        return " ".join(str(error).split()) or type(error).__name__
    return None


@contextmanager
def offline_if_unreachable() -> Iterator[str | None]:
    """Inside the block the hub's libraries read their caches alone if the hub doesn't answer; gives the reason."""
    reason = unreachable()
    if reason is None or constants.is_offline_mode():
        yield reason
        return
    with _offline():
        yield f"{endpoint()} doesn't answer: {reason}"


@contextmanager
def _offline() -> Iterator[None]:
    from datasets import config

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def is_local(name: str) -> bool:
    """Whether the name is that of an existing folder."""
    return Path(name).expanduser().is_dir()


def cached_sizes(name: str, file: str) -> list[int]:
    """The size in bytes of a hub model's file in the cache; empty where it isn't there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    return [Path(found).stat().st_size] if isinstance(found, str) else []
