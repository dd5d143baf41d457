"""OpenAI's API over a served chat policy: POST /v1/chat/completions, streamed or whole, and GET /v1/models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from tasks.registry import chat_server


def add_routes(app: FastAPI, path: str, policy: chat_server.ServedChat, name: str, version: str) -> None:
    """`name` is the model's id; clients may ask for it, for NAME/VERSION, or for no model."""
    listed = {"id": name, "object": "model", "created": 0, "owned_by": "rlhf"}
    full = f"{name}/{version}"

    @app.post(path)
    async def complete(request: Request) -> Response:
        try:
            asked = read(await request.body())
            if asked.get("model", name) not in (name, full):
                return _error(f"there is no model {asked['model']!r:.80} here: there is {name}", 404)
            checked = chat_server.checked(asked)
            ids = policy.prompt_ids(checked.messages)
        except ValueError as error:
            return _error(str(error))
        if checked.stream:
            told = chat_server.chunks(policy.stream(checked, ids), full, checked.usage)
            return StreamingResponse(_events(told), media_type="text/event-stream")
        answer = await asyncio.to_thread(policy.answer, checked, ids)
        return JSONResponse(chat_server.completion(answer, full))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [listed]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        if model not in (name, full):
            return _error(f"there is no model {model!r:.80} here: there is {name}", 404)
        return JSONResponse(listed)


def read(body: bytes) -> Mapping[str, Any]:
    """The request's object. Raises ValueError."""
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise ValueError(f"the request is no JSON: {error}") from None
    if not isinstance(asked, dict):
        raise ValueError('the request is no object: give {"messages": [{"role": "user", "content": "Hello!"}]}')
    return asked


def _events(told: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Server-sent events. An error, with the status sent already, is one too, as OpenAI's clients expect it."""
    try:
        for chunk in told:
            yield f"data: {json.dumps(chunk)}\n\n"
    except RuntimeError as error:  # such as no memory left
        yield f"data: {json.dumps(_said(' '.join(str(error).split()), 'server_error'))}\n\n"
    yield "data: [DONE]\n\n"


def _said(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _error(message: str, status: int = 400) -> Response:
    return JSONResponse(_said(message, "invalid_request_error"), status)
