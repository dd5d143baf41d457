"""`rlhf playground`: the page's application, and its server until Ctrl-C."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from rlhf_lib.errors import ModelError
from tasks.annotation import accounts
from tasks.annotation.database import Database
from tasks.pages import playground, serving
from tasks.pages.answer_queue import AnswerQueue
from tasks.pages.answers import Duels
from tasks.pages.app import create_app
from tasks.pages.offered import Models, offered
from tasks.registry.serving import temporary_files_removed

AT_ONCE, WAITING = 2, 20  # questions that are answered, and that wait, at a time


def application(
    database: Database,
    asked: Sequence[str] = (),
    *,
    hosts: list[str] | None = None,
    https: bool = False,
    login: bool = False,
    at_once: int = AT_ONCE,
) -> FastAPI:
    """The playground of the registered models `asked` for (none: all), with votes on the `database`. `login`: whoever
    asks must be logged in to one of its accounts. `hosts`, `https`: as of `create_app`."""

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        queue = AnswerQueue(at_once, WAITING)
        main.state.queue = queue
        try:
            yield
        finally:
            queue.close()

    page = APIRouter(lifespan=running)
    page.include_router(playground.router)
    main = create_app(database, hosts=hosts, https=https, pages=[page])
    main.state.asked, main.state.login = list(asked), login
    main.state.models, main.state.duels = Models(), Duels()
    return main


def require(asked: Sequence[str]) -> None:
    """Raises ModelError where a name isn't registered, or nothing is."""
    if not any(group.offers for group in offered(list(asked))):
        raise ModelError("nothing is registered yet: rlhf run RECIPE makes a version")


def serve(
    database: Database,
    asked: Sequence[str],
    *,
    host: str = serving.LOCAL,
    port: int,
    names: list[str] | None = None,
    https: bool = False,
) -> None:
    """Answer until Ctrl-C or SIGTERM; anywhere but on 127.0.0.1, only those who log in to an account of the `database`.
    Raises EnvironmentFault for a port in use."""
    login = host != serving.LOCAL or bool(names)

    def ready(address: str) -> None:
        print(f"The playground is on {address} until Ctrl-C.", flush=True)
        if login and not any(account.active and account.password for account in accounts.listed(database)):
            print("Nobody can log in yet: rlhf annotators add NAME", flush=True)

    def make_app(database: Database, *, hosts: list[str], https: bool) -> FastAPI:
        return application(database, asked, hosts=hosts, https=https, login=login)

    with temporary_files_removed():
        serving.serve(database, host, port, names=names or [], https=https, ready=ready, make_app=make_app)
