"""The application: logins, the page for ranking, the owner's pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Form
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from rlhf_lib.errors import RLHFError
from tasks.annotation import accounts
from tasks.annotation.database import Database
from tasks.annotation.models import OWNER
from tasks.annotation.store import Conflict
from tasks.pages import owner, rank, security
from tasks.pages.templating import page_templates, static_files

SESSION = 14 * 24 * 3600  # seconds
LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]

router = APIRouter()


def create_app(
    database: Database,
    *,
    hosts: list[str] | None = None,
    https: bool = False,
    pages: Sequence[APIRouter] = (rank.router, owner.router),
) -> FastAPI:
    """The pages on this database. `hosts`: the names under which they may be asked for (default: this machine's own;
    another site's name that leads here is refused); `https`: cookies go over HTTPS only. `pages`: those beside the
    logins; one that has "/" is where people begin."""
    guards = [
        Middleware(security.Guard),
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts or LOOPBACK),
        Middleware(
            SessionMiddleware,
            secret_key=database.secret("cookies"),
            session_cookie=security.cookie_name(database.secret("cookies")),
            max_age=SESSION,
            same_site="lax",
            https_only=https,
        ),
    ]
    app = FastAPI(title="rlhf", middleware=guards, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.database, app.state.templates, app.state.tries = database, page_templates(), security.Tries()
    app.mount("/static", static_files(), name="static")
    for part in (*pages, router):
        app.include_router(part)
    app.add_exception_handler(security.LoginNeeded, _to_login)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _refused)
    app.add_exception_handler(RLHFError, _refused)
    app.add_exception_handler(Conflict, _refused)
    return app


@router.get("/")
def home(request: Request) -> Response:
    """Where each role begins."""
    account = security.annotator(request)
    return RedirectResponse("/owner" if account.role == OWNER else "/rank", 303)


@router.get("/health")
def health() -> dict[str, str]:
    """Whether it answers, for whoever started it."""
    return {"status": "ok"}


@router.get("/login")
def login(request: Request) -> Response:
    """The login form."""
    return _login_page(request)


@router.post("/login", dependencies=[Depends(security.own_page)])
def log_in(request: Request, name: Annotated[str, Form()] = "", password: Annotated[str, Form()] = "") -> Response:
    """Log in by name and password; a few tries in five minutes."""
    if not request.app.state.tries.allowed(request, name):
        return _login_page(request, "Too many tries: wait five minutes.", 429)
    account = accounts.by_password(request.app.state.database, name, password)
    if account is None:
        return _login_page(request, "Name or password is wrong.", 401)
    security.log_in(request, account)
    return RedirectResponse("/", 303)


@router.get("/login/{token}")
def follow_link(request: Request, token: str) -> Response:
    """Log in by a link's token."""
    if not request.app.state.tries.allowed(request, "/link"):
        return _login_page(request, "Too many tries: wait five minutes.", 429)
    account = accounts.by_link(request.app.state.database, token)
    if account is None:
        return _login_page(request, "This link is no longer valid: ask for a new one, or log in by password.", 401)
    security.log_in(request, account)
    return RedirectResponse("/", 303)


@router.post("/logout", dependencies=[Depends(security.own_page)])
def log_out(request: Request) -> Response:
    """End the session."""
    request.session.clear()
    return RedirectResponse("/login", 303)


def _login_page(request: Request, fault: str | None = None, status: int = 200) -> Response:
    shown = {"csrf": security.csrf_token(request), "fault": fault}
    response: Response = request.app.state.templates.TemplateResponse(request, "login.html", shown, status_code=status)
    return response


def _wants_json(request: Request) -> bool:
    return "json" in request.headers.get("content-type", "")


async def _to_login(request: Request, _: Exception) -> Response:
    if _wants_json(request):
        return JSONResponse({"detail": "log in again"}, status_code=401)
    return RedirectResponse("/login", 303)


async def _refused(request: Request, error: Exception) -> Response:
    status, detail = 422, str(error)
    if isinstance(error, HTTPException):
        status, detail = error.status_code, error.detail
    elif isinstance(error, Conflict):
        status = 409
    elif isinstance(error, RequestValidationError):
        detail = "; ".join(f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors())
    if _wants_json(request):
        return JSONResponse({"detail": detail}, status_code=status)
    shown: dict[str, Any] = {"detail": detail, "status": status}
    response: Response = request.app.state.templates.TemplateResponse(
        request, "refused.html", shown, status_code=status
    )
    return response
