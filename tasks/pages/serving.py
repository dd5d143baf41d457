"""The pages' server: one process, on 127.0.0.1 unless told otherwise."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from rlhf_lib.errors import EnvironmentFault
from tasks.annotation.database import Database

if TYPE_CHECKING:
    from fastapi import FastAPI

LOCAL = "127.0.0.1"
GRACE = 3  # seconds for what is being sent when the server ends


def serve(
    database: Database,
    host: str,
    port: int,
    *,
    names: list[str],
    https: bool = False,
    ready: Callable[[str], None],
    make_app: Callable[..., FastAPI] | None = None,
) -> None:
    """Answer until Ctrl-C or SIGTERM. `ready` is told the address once requests are queued. `names`: those under which
    browsers may ask, besides this machine's own. `make_app`: the pages, called as `create_app` is, which is the
    default. Raises EnvironmentFault for a port in use."""
    import uvicorn

    from tasks.pages.app import LOOPBACK, create_app

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _listening(host, port) as listener, suppress(KeyboardInterrupt):
        port = listener.getsockname()[1]
        everywhere = host in ("0.0.0.0", "::")
        hosts = [*LOOPBACK, *names, *([] if everywhere else [host])]
        app = (make_app or create_app)(database, hosts=["*"] if everywhere and not names else hosts, https=https)
        # no log of requests: their paths hold login links
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, proxy_headers=https, timeout_graceful_shutdown=GRACE
        )
        shown = names[0] if names else socket.gethostname() if everywhere else host
        scheme = "https" if https else "http"
        ready(f"{scheme}://{shown}" + ("" if https and names else f":{port}"))
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise EnvironmentFault(
            f"--port {port} of {host}: {error.strerror}: choose another port, or 0 for any"
        ) from None
    return listener
