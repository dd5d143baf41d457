"""A registered version that answers over HTTP: MLflow's scoring server in this process, with our code and the
version's weights, and OpenAI's API where it is a chat policy. (`mlflow models serve` runs the code that came with the
version.)"""

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

    from tasks.registry.chat_server import ServedChat

HOST = "127.0.0.1"
_TABLES = ("inputs", "instances", "dataframe_split", "dataframe_records")
_FORMS = (*_TABLES, "prompt")
_EXAMPLE = "Hello!"
CHAT_PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Served:
    name: str
    version: str
    model: PyFuncModel
    example: Any  # a question, or a conversation's messages
    chat: ServedChat | None  # the policy, where it is one of conversations


def serve(model: str, port: int) -> None:
    """Answer on 127.0.0.1 until Ctrl-C or SIGTERM. Raises EnvironmentFault for a port in use, ModelError for a model
    that isn't registered."""
    import uvicorn

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _listening(port) as listener, temporary_files_removed(), suppress(KeyboardInterrupt):
        served, port = load(model), listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(application(served), log_level="warning"))
        named = f"{served.name} {served.version}"
        openai = f" OpenAI's clients: base_url http://{HOST}:{port}/v1, model {served.name}." if served.chat else ""
        print(f"{named} answers on http://{HOST}:{port} until Ctrl-C.{openai} Ask it something:", flush=True)
        print(curl(served, port), flush=True)
        server.run(sockets=[listener])


def load(model: str) -> Served:
    """The registered version that NAME (its champion), NAME@ALIAS or NAME/VERSION names, with or without models:/.
    Raises ModelError."""
    from mlflow.models import Model
    from mlflow.pyfunc import FLAVOR_NAME, MAIN, PyFuncModel

    from tasks.registry.chat_server import ServedChat
    from tasks.registry.policy_server import ServedPolicy

    version = versions.named(model)
    root, folder = policies.fetch(versions.uri_of(version))
    settings = policies.settings(root)
    talks = policies.is_chat(settings)
    if not talks and "turn" not in settings:  # registered before versions recorded it
        settings |= policies.form(versions.recipe_of(version))
    chat = ServedChat() if talks else None
    policy = chat or ServedPolicy()
    policy.load(folder, settings)
    signature = policies.chat_signature() if talks else policies.signature(settings)
    meta = Model(signature=signature, flavors={FLAVOR_NAME: {MAIN: __name__}})
    example = settings.get("example") or _EXAMPLE
    return Served(version.name, str(version.version), PyFuncModel(meta, policy), example, chat)


def application(served: Served) -> FastAPI:
    """MLflow's scoring server, which ignores what it doesn't know; here that is refused, in one line. A chat policy has
    OpenAI's API beside it."""
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse
    from mlflow.pyfunc import scoring_server

    from tasks.registry import chat_completions

    app: FastAPI = scoring_server.init(served.model)
    chat = served.chat
    if chat:
        chat_completions.add_routes(app, CHAT_PATH, chat, served.name, served.version)

    @app.middleware("http")
    async def refuse(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path == "/invocations":
            try:
                asked = json.loads(await request.body())
                check_conversation(asked, chat) if chat else check_request(asked)
            except json.JSONDecodeError:
                pass  # CSV, or for MLflow to complain about
            except ValueError as error:
                return JSONResponse({"error_code": "INVALID_PARAMETER_VALUE", "message": str(error)}, 400)
        return await call_next(request)

    return app


def check_conversation(request: Any, policy: ServedChat) -> None:
    """Raise ValueError for a request that the chat policy can't answer. MLflow's tables are left to MLflow."""
    from tasks.registry.chat_server import checked

    if not isinstance(request, Mapping) or any(form in request for form in _TABLES):
        return
    asked = checked(request)
    if asked.stream:
        raise ValueError(f"stream: MLflow's /invocations has no stream, but {CHAT_PATH} has")
    policy.prompt_ids(asked.messages)


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
    asked: dict[str, Any] = {"inputs": [served.example], "params": {"temperature": 0.7}}
    path = "/invocations"
    if served.chat:
        asked, path = {"messages": served.example, "temperature": 0.7}, CHAT_PATH
    body = json.dumps(asked, ensure_ascii=False)
    return f"curl -s http://{HOST}:{port}{path} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


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
def temporary_files_removed() -> Iterator[None]:
    """MLflow leaves what it downloads in the folder for temporary files; here in one that is removed."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="rlhf-serve-") as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
