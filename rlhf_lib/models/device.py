"""Memory that is freed and asked for again a thousand times a step, and what the C library makes of that."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, instead of handing large blocks back to the system, which clears every page
    of them when they are next asked for: a fifth of a step of GPT-2 on a CPU (docs/log.md). glibc's malloc alone;
    False elsewhere. It holds for the whole process, whose size then stays near its peak.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
