"""`rlhf playground`: the page's application, and its server until Ctrl-C."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from rlhf_lib.errors import EnvironmentFault
from tasks.annotation.database import Database
from tasks.pages import playground
from tasks.pages.answer_queue import AnswerQueue
from tasks.pages.answers import Duels
from tasks.pages.app import create_app
from tasks.pages.offered import Models, offered
from tasks.registry import serving

AT_ONCE, WAITING = 2, 20  # questions that are answered, and that wait, at a time


def application(
    database: Database, asked: Sequence[str] = (), *, login: bool = False, at_once: int = AT_ONCE
) -> FastAPI:
    """The playground of the registered models `asked` for (none: all), on the database of votes. `login`: whether
    whoever asks has to be logged in."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.queue = AnswerQueue(at_once, WAITING)
        yield
        app.state.queue.close()

    app = create_app(database, pages=[playground.router], lifespan=lifespan)
    app.state.asked, app.state.login = list(asked), login
    app.state.models, app.state.duels = Models(), Duels()
    return app


def serve(database: str, asked: Sequence[str], *, host: str = serving.HOST, port: int) -> None:
    """Answer until Ctrl-C or SIGTERM. `database`: the URL of the votes' database. Raises EnvironmentFault for a port in
    use, ModelError for a name that isn't registered."""
    if host != serving.HOST:
        raise EnvironmentFault(f"--host {host}: TODO")
    with serving.listening(port) as listener:
        offered(list(asked))
        app = application(Database(database), asked)
        port = listener.getsockname()[1]
        print(f"The playground is on http://{host}:{port} until Ctrl-C.", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
