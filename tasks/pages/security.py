"""What keeps the pages to whom they are for: sessions, roles, forged requests, tries at logins, sizes, headers.

Sessions are Starlette's (a signed cookie, HttpOnly, SameSite=Lax). Whatever changes something also needs the token that
the session's own pages carry, and comes from a page of this address (Origin).
"""

from __future__ import annotations

import hashlib
import secrets
from urllib.parse import urlsplit

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.annotation import accounts
from tasks.annotation.models import OWNER, Account

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
BODY = 256 * 1024  # bytes of a request
UPLOAD = 32 * 1024 * 1024  # of a file that the owner brings
PER_NAME, PER_ADDRESS = parse("10/5minutes"), parse("60/5minutes")  # tries at a password


def cookie_name(secret: str) -> str:
    """The session cookie's name on a database with this secret. Browsers send cookies to all ports of a host: servers
    on different databases mustn't take each other's."""
    return f"rlhf-{hashlib.sha256(secret.encode()).hexdigest()[:8]}"


class LoginNeeded(Exception):
    """Nobody is logged in, where somebody has to be."""


def visitor(request: Request) -> Account | None:
    """Who is logged in, if anybody."""
    known = request.session.get("account")
    if not isinstance(known, list) or len(known) != 2:
        return None
    return accounts.by_session(request.app.state.database, *known)


def annotator(request: Request) -> Account:
    """Who is logged in, whatever their role. Raises LoginNeeded."""
    account = visitor(request)
    if account is None:
        raise LoginNeeded
    return account


def owner(request: Request) -> Account:
    """The owner who is logged in. Raises LoginNeeded, and 403 for annotators."""
    account = annotator(request)
    if account.role != OWNER:
        raise HTTPException(403, "This page is the owner's.")
    return account


def log_in(request: Request, account: Account) -> None:
    """A new session for the account: nothing of the one before stays."""
    request.session.clear()
    request.session["account"] = [account.id, account.generation]
    csrf_token(request)


def csrf_token(request: Request) -> str:
    """The token of this session, which its pages send back."""
    token = request.session.get("csrf")
    if not isinstance(token, str):
        token = request.session["csrf"] = secrets.token_urlsafe(24)
    return token


async def own_page(request: Request) -> None:
    """Refuse (403) what doesn't come from a page of this session: without its token, as the header X-CSRF-Token or the
    field `csrf`, or from another origin."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "This request came from another site.")
    given = request.headers.get("x-csrf-token")
    if given is None and "form" in request.headers.get("content-type", ""):
        given = str((await request.form()).get("csrf", ""))
    expected = request.session.get("csrf")
    if not isinstance(expected, str) or not secrets.compare_digest((given or "").encode(), expected.encode()):
        raise HTTPException(403, "This page is out of date: load it again.")


class Tries:
    """Tries at logins, counted by name and address, and by address alone."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def allowed(self, request: Request, name: str) -> bool:
        """Count a try; whether it may be made."""
        address = request.client.host if request.client else "-"
        by_address = self._limiter.hit(PER_ADDRESS, address)
        return self._limiter.hit(PER_NAME, address, name.strip().lower()) and by_address


class Guard:
    """Refuses bodies that are too large, however they are sent, and adds the headers that every answer has."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = UPLOAD if scope["path"].startswith("/owner/") else BODY
        length = Headers(scope=scope).get("content-length", "0")
        received, begun, exceeded = 0, False, False

        async def counted() -> Message:
            nonlocal received, exceeded
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                exceeded = True
                raise _TooLarge
            return message

        async def with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                if exceeded:  # what read the body may have made another refusal of it
                    message["status"] = 413
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if not scope["path"].startswith("/static/"):
                    headers["Cache-Control"] = "no-store"
            await send(message)

        try:
            if not length.isdigit() or int(length) > limit:
                raise _TooLarge
            await self.app(scope, counted, with_headers)
        except _TooLarge:
            if not begun:
                too_large = PlainTextResponse("That is too large.", status_code=413)
                await too_large(scope, receive, with_headers)


class _TooLarge(Exception):
    pass
