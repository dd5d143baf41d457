"""The playground: models answer the same prompt side by side, as they are sampled."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from rlhf_lib.errors import RLHFError
from tasks.annotation import store
from tasks.pages import security
from tasks.pages.answer_queue import Job
from tasks.pages.answers import MOST_MODELS, PROMPT_CHARS, Duel, Duels, Question, Vote, side_by_side
from tasks.pages.offered import offered
from tasks.registry.champions import user

logger = logging.getLogger(__name__)
router = APIRouter()


def annotator(request: Request) -> str:
    """Whose votes these are: the account's that is logged in; where no login is needed, this user's."""
    account = security.visitor(request)
    if account is not None:
        return account.name
    if request.app.state.login:
        raise security.LoginNeeded
    return user()


Allowed = Depends(annotator)


@router.get("/")
def home() -> Response:
    """The playground is all there is."""
    return RedirectResponse("/playground", 303)


@router.get("/playground", dependencies=[Allowed])
def page(request: Request) -> Response:
    """The page. Its script reads the address's parameters, from which it restores models, prompts and settings."""
    groups = offered(request.app.state.asked)
    shown: dict[str, Any] = {
        "account": security.visitor(request),
        "csrf": security.csrf_token(request),
        "wide": True,
        "groups": groups,
        "data": {"most": MOST_MODELS, "chars": PROMPT_CHARS},
    }
    response: Response = request.app.state.templates.TemplateResponse(request, "playground.html", shown)
    return response


@router.get("/playground/prompt", dependencies=[Allowed])
def prompt(request: Request, model: str) -> dict[str, str]:
    """One of the prompts of the evaluation of a version, drawn anew each time."""
    prompts = request.app.state.models.prompts(model)
    return {"prompt": random.choice(prompts)}


@router.post("/playground/answers", dependencies=[Depends(security.own_page), Allowed])
async def answers(request: Request, question: Question) -> Response:
    """Server-sent events: see `side_by_side`, and {"place": 2} while it waits. Nothing of it is kept on the server but
    what a vote is about."""
    duel = None
    if question.blind:
        left, right = random.sample(question.models, 2)
        duel = Duel([left, right])
        question = question.model_copy(update={"models": [left, right], "said": {}, "turn": 0})
    return StreamingResponse(_events(request, question, duel), media_type="text/event-stream")


async def _events(request: Request, question: Question, duel: Duel | None) -> AsyncIterator[str]:
    state = request.app.state
    try:
        loaded = []
        for id in question.models:
            if not state.models.ready(id):
                yield _event({"loading": "a model" if duel else id})
            if await request.is_disconnected():
                return
            loaded.append(await asyncio.to_thread(state.models.load, id))
        job: Job = state.queue.add(side_by_side(question, loaded, duel))
        told = job.events()
        try:
            async for event in told:
                if event is not None:
                    yield _event(event)
                elif await request.is_disconnected():
                    return
        finally:
            await told.aclose()  # type: ignore[attr-defined]
        if duel is not None:
            yield _event({"duel": state.duels.add(duel), "why": duel.why_no_pair})
    except Exception as error:  # the status is sent already; such as no memory left, or a reward of the user's
        if not isinstance(error, RLHFError):
            logger.exception("an answer failed")
        yield _event({"error": " ".join(str(error).split())})
    yield _event({"end": True})


def _event(told: dict[str, Any]) -> str:
    return f"data: {json.dumps(told)}\n\n"


@router.post("/playground/votes", dependencies=[Depends(security.own_page)])
def vote(request: Request, sent: Vote, by: str = Allowed) -> dict[str, Any]:
    """Keep a vote beside the rankings, and tell who answered. 404 for a duel that the server no longer knows."""
    duels: Duels = request.app.state.duels
    duel = duels.get(sent.duel)
    if duel is None:
        raise HTTPException(404, "The server no longer knows these answers: ask again.")
    if not duel.voted and sent.choice != "none":
        if duel.prompt is None or duel.why_no_pair:
            raise HTTPException(422, f"There is nothing to vote on: {duel.why_no_pair}.")
        store.add_vote(
            request.app.state.database,
            duel.prompt,
            duel.texts,
            {"left": 0, "right": 1}.get(sent.choice),
            by,
            submission=sent.duel,
            models=duel.models,
            messages=duel.messages,
            all_bad=sent.choice == "bad",
            seconds=sent.seconds,
        )
    duel.voted = True  # whoever knows the names has no vote
    return {"models": duel.models, "scores": duel.scores}
