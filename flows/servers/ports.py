"""Ports of this machine: whether one is free, and who has it if not."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Collection

HOST = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on it now."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((HOST, port)) == 0:  # where macOS would let both listen, one on all addresses
            return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def next_free(port: int, besides: Collection[int] = ()) -> int:
    """The next free port above this one."""
    return next((p for p in range(port + 1, 65536) if p not in besides and is_free(p)), 0)


def holder(port: int) -> str:
    """` by process ID (COMMAND)` for whoever listens on the port; empty where this user may not know."""
    import psutil

    try:
        listening = [
            c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port
        ]
        pid = min(connection.pid for connection in listening if connection.pid)
        command = shlex.join(psutil.Process(pid).cmdline())
    except (ValueError, OSError, psutil.Error):
        return ""
    return f" by process {pid} ({command if len(command) <= 100 else command[:97] + '...'})"
