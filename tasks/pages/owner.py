"""The owner's pages: rounds, agreement, files in and out, accounts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from rlhf_lib.data.rankings.exports import is_export
from rlhf_lib.data.rankings.files import Rejected
from tasks.annotation import accounts, exchange, overview, store
from tasks.annotation.models import ANNOTATOR, OWNER, Account
from tasks.pages import security

router = APIRouter(prefix="/owner", dependencies=[Depends(security.owner)])
Owner = Annotated[Account, Depends(security.owner)]
FILES: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "tasks": exchange.task_rows,
    "rankings": exchange.ranking_rows,
    "skips": exchange.skip_rows,
}
own_page = [Depends(security.own_page)]


@router.get("")
def rounds(request: Request, account: Owner) -> Response:
    """All rounds and accounts."""
    return _rounds_page(request, account)


@router.get("/rounds/{of}")
def one_round(request: Request, account: Owner, of: int) -> Response:
    """A round as it stands."""
    return _round_page(request, account, of)


@router.get("/rounds/{of}/{name}.jsonl")
def download(request: Request, of: int, name: Literal["tasks", "rankings", "skips"]) -> Response:
    """A round's file, as `rlhf rankings` reads it."""
    database = request.app.state.database
    if overview.overview(database, of) is None:
        raise HTTPException(404, "There is no such round.")
    headers = {"Content-Disposition": f'attachment; filename="{name}.jsonl"'}
    rows = exchange.lines(FILES[name](database, of))
    return StreamingResponse(rows, media_type="application/x-ndjson", headers=headers)


@router.post("/rounds", dependencies=own_page)
def open_round(
    request: Request,
    account: Owner,
    file: Annotated[UploadFile, File()],
    annotators: Annotated[int, Form()] = 3,
    name: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """Open a round from a file that `rlhf collect` wrote, or take an export of Argilla or Label Studio as one."""
    database, name = request.app.state.database, (name.strip() or Path(file.filename or "round").stem)[:200]
    with _kept(file, ".jsonl") as path:
        if is_export(path):
            made, taken = exchange.bring_export(database, name, path)
            said = f"{taken.new} rankings taken, {taken.known} were there already."
            return _round_page(request, account, made.id, said=said, rejected=taken.rejected)
        tasks, rejected = exchange.read_tasks([path])
    made, _ = store.open_round(database, name, tasks, annotators=annotators)
    if rejected:
        return _round_page(request, account, made.id, rejected=rejected)
    return RedirectResponse(f"/owner/rounds/{made.id}", 303)


@router.post("/rounds/{of}/rankings", dependencies=own_page)
def bring_rankings(request: Request, account: Owner, of: int, file: Annotated[UploadFile, File()]) -> Response:
    """Take rankings of the round's tasks from a file."""
    suffix = Path(file.filename or "").suffix.lower()
    with _kept(file, suffix if suffix in (".csv", ".jsonl", ".ndjson") else ".jsonl") as path:
        taken = exchange.bring_rankings(request.app.state.database, of, [path])
    said = f"{taken.new} rankings taken, {taken.known} were there already."
    return _round_page(request, account, of, said=said, rejected=taken.rejected)


@router.post("/rounds/{of}/state", dependencies=own_page)
def set_state(request: Request, of: int, closed: Annotated[bool, Form()]) -> Response:
    """Close the round, or open it again."""
    store.set_closed(request.app.state.database, of, closed)
    return RedirectResponse(f"/owner/rounds/{of}", 303)


@router.post("/accounts", dependencies=own_page)
def add_account(
    request: Request, account: Owner, name: Annotated[str, Form()], owner: Annotated[bool, Form()] = False
) -> Response:
    """A new account. Its password and link are shown this once."""
    database = request.app.state.database
    made, password = accounts.add(database, name, role=OWNER if owner else ANNOTATOR)
    return _rounds_page(request, account, (made.name, password, _link(request, made.name)))


@router.post("/accounts/{whose}", dependencies=own_page)
def change_account(
    request: Request, account: Owner, whose: int, action: Annotated[Literal["reset", "remove"], Form()]
) -> Response:
    """A new password and link for an account, or the end of its logins."""
    database = request.app.state.database
    named = {one.id: one.name for one in accounts.listed(database)}
    if whose not in named:
        raise HTTPException(404, "There is no such account.")
    if whose == account.id:
        raise HTTPException(422, "This is your own account: rlhf annotators reset gives it a new password.")
    if action == "remove":
        accounts.remove(database, named[whose])
        return RedirectResponse("/owner#people", 303)
    password = accounts.reset(database, named[whose])
    return _rounds_page(request, account, (named[whose], password, _link(request, named[whose])))


def _rounds_page(request: Request, account: Account, new: tuple[str, str, str] | None = None) -> Response:
    database = request.app.state.database
    shown = {"rounds": overview.rounds(database), "people": accounts.listed(database), "new": new}
    shown["counts"] = overview.people(database)
    return _page(request, account, "owner.html", shown)


def _round_page(
    request: Request, account: Account, of: int, *, said: str | None = None, rejected: list[Rejected] | None = None
) -> Response:
    found = overview.overview(request.app.state.database, of)
    if found is None:
        raise HTTPException(404, "There is no such round.")
    rows = [f"line {row.line}: {row.reason}: {row.detail}" for row in rejected or []]
    return _page(request, account, "round.html", {"view": found, "said": said, "rejected": rows})


def _page(request: Request, account: Account, name: str, shown: dict[str, Any]) -> Response:
    shown |= {"account": account, "csrf": security.csrf_token(request), "wide": True}
    page: Response = request.app.state.templates.TemplateResponse(request, name, shown)
    return page


def _link(request: Request, name: str) -> str:
    return str(request.url_for("follow_link", token=accounts.link(request.app.state.database, name)))


@contextmanager
def _kept(file: UploadFile, suffix: str) -> Iterator[str]:
    """The upload as a file, for the readers of files."""
    with tempfile.TemporaryDirectory(prefix="rlhf-upload-") as folder:
        path = Path(folder) / f"upload{suffix}"
        path.write_bytes(file.file.read(security.UPLOAD))
        yield str(path)
