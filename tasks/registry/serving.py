"""A registered version that answers over HTTP: MLflow's scoring server in this process, with our code and the
version's weights. (`mlflow models serve` runs the code that came with the version.)"""

from __future__ import annotations

import errno
import json
import shlex
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from rlhf_lib.errors import EnvironmentFault
from tasks.registry import policies, versions

if TYPE_CHECKING:
    from fastapi import FastAPI
    from mlflow.pyfunc import PyFuncModel

HOST = "127.0.0.1"
_FORMS = ("inputs", "instances", "dataframe_split", "dataframe_records", "prompt")
_EXAMPLE = "Hello!"


@dataclass(frozen=True)
class Served:
    name: str  # and version
    model: PyFuncModel
    example: str  # a question


def serve(model: str, port: int) -> None:
    """Answer on 127.0.0.1 until Ctrl-C or SIGTERM. Raises EnvironmentFault for a port in use, ModelError for a model
    that isn't registered."""
    import uvicorn

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _listening(port) as listener, _temporary_files_removed(), suppress(KeyboardInterrupt):
        served, port = load(model), listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(application(served), log_level="warning"))
        print(f"{served.name} answers on http://{HOST}:{port} until Ctrl-C. Ask it something:", flush=True)
        print(curl(served, port), flush=True)
        server.run(sockets=[listener])


def load(model: str) -> Served:
    """The registered version that NAME (its champion), NAME@ALIAS or NAME/VERSION names, with or without models:/.
    Raises ModelError."""
    from mlflow.models import Model
    from mlflow.pyfunc import FLAVOR_NAME, MAIN, PyFuncModel

    from tasks.registry.policy_server import ServedPolicy

    version = versions.named(model)
    root, folder = policies.fetch(versions.uri_of(version))
    flavors = Model.load(root).flavors[FLAVOR_NAME]
    settings = dict(flavors["config"])
    if "turn" not in settings:  # registered before versions recorded it
        settings |= policies.form(versions.recipe_of(version))
    policy = ServedPolicy()
    policy.load(folder, settings)
    meta = Model(signature=policies.signature(settings), flavors={FLAVOR_NAME: {MAIN: __name__}})
    return Served(f"{version.name} {version.version}", PyFuncModel(meta, policy), settings.get("example") or _EXAMPLE)


def application(served: Served) -> FastAPI:
    """MLflow's scoring server, which ignores what it doesn't know; here that is refused, in one line."""
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse
    from mlflow.pyfunc import scoring_server

    app: FastAPI = scoring_server.init(served.model)

    @app.middleware("http")
    async def refuse(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path == "/invocations":
            try:
                check_request(json.loads(await request.body()))
            except json.JSONDecodeError:
                pass  # CSV, or for MLflow to complain about
            except ValueError as error:
                return JSONResponse({"error_code": "INVALID_PARAMETER_VALUE", "message": str(error)}, 400)
        return await call_next(request)

    return app


def check_request(request: Any) -> None:
    """Raise ValueError for a request with a key or parameter that is unknown, in the wrong place or out of range."""
    from tasks.registry.policy_server import PARAMETERS, checked

    if not isinstance(request, Mapping):
        return
    if not any(form in request for form in _FORMS):
        raise ValueError(f"the request asks nothing: put the questions under {', '.join(map(repr, _FORMS))}")
    stray = {key: value for key, value in request.items() if key not in (*_FORMS, "params")}
    params = request.get("params") or {}
    if not isinstance(params, Mapping):
        raise ValueError(f'params is {params!r}, but must be an object such as {{"temperature": 0.7}}')
    if "prompt" in request:  # MLflow takes this one's parameters beside it
        params, stray = {**params, **stray}, {}
    for key in stray:
        if key in PARAMETERS:
            raise ValueError(f"{key} belongs under params: {json.dumps({'params': {key: stray[key]}})}")
        raise ValueError(f"there is no key {key!r} in a request{_meant(key, (*_FORMS, 'params', *PARAMETERS))}")
    for name in params:
        if name not in PARAMETERS:
            raise ValueError(f"there is no parameter {name!r}{_meant(name, PARAMETERS)}")
    checked(params)


def curl(served: Served, port: int) -> str:
    """A command line that asks the server something."""
    body = json.dumps({"inputs": [served.example], "params": {"temperature": 0.7}}, ensure_ascii=False)
    return f"curl -s http://{HOST}:{port}/invocations -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _meant(word: str, words: Mapping[str, Any] | tuple[str, ...]) -> str:
    near = get_close_matches(word, list(words), 1)
    return f": did you mean {near[0]!r}?" if near else f": there are {', '.join(words)}"


def _listening(port: int) -> socket.socket:
    """The port, taken before anything is loaded."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is taken" if taken else f"can't be used ({error})"
        raise EnvironmentFault(f"port {port} of {HOST} {reason}: choose another with --port") from None
    listener.listen(128)
    return listener


@contextmanager
def _temporary_files_removed() -> Iterator[None]:
    """MLflow leaves what it downloads in the folder for temporary files; here in one that is removed."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="rlhf-serve-") as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
