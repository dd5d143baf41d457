"""The page where people rank answers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from tasks.annotation import handout, store
from tasks.annotation.models import RANKING, Account
from tasks.pages import security

router = APIRouter()
INSTRUCTIONS = "Rank the answers by how {criterion} they are, the best first. Answers may share a rank."
SKIPS = ("I can't judge this", "The prompt makes no sense", "An answer is broken", "I don't want to read this")
Annotator = Annotated[Account, Depends(security.annotator)]


class Submission(BaseModel):
    """What the page sends: `submission` is the id that it made for this judgement."""

    model_config = ConfigDict(extra="forbid")
    task: StrictInt
    submission: str = Field(min_length=8, max_length=64)
    kind: str = RANKING
    ranks: dict[str, StrictInt] | None = Field(default=None, max_length=100)
    all_bad: bool = False
    reason: str | None = Field(default=None, max_length=store.TEXT)
    comment: str | None = Field(default=None, max_length=store.TEXT)
    seconds: float | None = None


@router.get("/rank")
def rank(request: Request, account: Annotator) -> Response:
    """The annotator's task: the one that they left, or the next."""
    database = request.app.state.database
    handed = handout.next_task(database, account.id)
    done = handout.progress(database, account.id)
    with database.read() as session:
        last = store.last_judgement(session, account.id)
    shown: dict[str, Any] = {
        "account": account,
        "csrf": security.csrf_token(request),
        "progress": done,
        "last": last.id if last else None,
    }
    if handed is None:
        page: Response = request.app.state.templates.TemplateResponse(request, "nothing_left.html", shown)
        return page
    task, letters = handed.task, [chr(ord("A") + place) for place in range(len(handed.answers))]
    criterion = task.criterion or task.round.criterion
    before = handed.before
    data = {
        "account": account.id,
        "task": task.id,
        "keys": dict(zip(letters, (answer.key for answer in handed.answers), strict=True)),
        "ranks": (before.ranks or {}) if before else {},
        "allBad": bool(before and before.all_bad),
    }
    shown |= {
        "task": task,
        "answers": list(zip(letters, handed.answers, strict=True)),
        "criterion": criterion,
        "instructions": task.instructions or INSTRUCTIONS.format(criterion=criterion or "good"),
        "comment": before.comment or "" if before else "",
        "skips": SKIPS,
        "data": data,
        "wide": True,
    }
    page = request.app.state.templates.TemplateResponse(request, "rank.html", shown)
    return page


@router.post("/rank", dependencies=[Depends(security.own_page)])
def submit(request: Request, account: Annotator, sent: Submission) -> dict[str, Any]:
    """Keep a judgement; 409 if the task is judged already, 422 if it isn't whole."""
    said = store.Said(
        kind=sent.kind,
        ranks=sent.ranks,
        all_bad=sent.all_bad,
        reason=sent.reason,
        comment=sent.comment,
        seconds=sent.seconds,
    )
    kept, new = store.submit(request.app.state.database, account.id, sent.task, sent.submission, said)
    return {"judgement": kept.id, "new": new}


@router.post("/rank/undo", dependencies=[Depends(security.own_page)])
def undo(request: Request, account: Annotator, judgement: Annotated[int, Form()]) -> Response:
    """Take the last judgement back and show its task again."""
    store.undo(request.app.state.database, account.id, judgement)
    return RedirectResponse("/rank", 303)
