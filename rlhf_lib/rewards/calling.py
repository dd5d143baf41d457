"""Calling a reward function as its author wrote it: as TRL's GRPO does, or with two lists of texts.

    def f(prompts, completions, completion_ids, solution, **kwargs): ...  # keywords, as TRL 1.16's GRPOTrainer
    def f(queries, responses): ...

Light modules alone are imported here, for isolated functions (worker.py) begin with it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from inspect import Parameter
from types import SimpleNamespace
from typing import Any

from rlhf_lib.conversation import Conversation

Columns = Mapping[str, Sequence[Any]]  # by name, a value an answer: the prompts' other columns, and completion_ids

COMPLETION_IDS = "completion_ids"
_ANSWERS = ("prompts", "completions", COMPLETION_IDS)
_TRAINER = ("trainer_state", "log_extra", "log_metric")  # what TRL's trainer passes of itself


def by_keywords(function: Callable[..., Any]) -> bool:
    """Whether the function is written as TRL's are: it names `completions` or `completion_ids`, or it takes any keyword
    (naming `prompts`, or no two arguments by position)."""
    parameters = _parameters(function)
    named = {p.name for p in _named(parameters)}
    if {"completions", COMPLETION_IDS} & named:
        return True
    kinds = {p.kind for p in parameters}
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    texts = len(places) >= 2 or Parameter.VAR_POSITIONAL in kinds
    return Parameter.VAR_KEYWORD in kinds and ("prompts" in named or not texts)


def takes_texts(function: Callable[..., Any]) -> bool:
    """Whether two lists of texts can be given to it by position."""
    try:
        inspect.signature(function).bind([], [])
    except ValueError:  # built in
        return True
    except TypeError:
        return False
    return True


def required_columns(function: Callable[..., Any], known: Sequence[str] | None = None) -> list[str]:
    """The prompts' columns without which the function can't be called. `known`: the keywords of one that is no reward
    and gets others."""
    if known is None and not by_keywords(function):
        return []
    required = [p.name for p in _named(_parameters(function)) if p.default is p.empty]
    return [name for name in required if name not in (known or (*_ANSWERS, *_TRAINER))]


def keywords(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the keywords offered that the function names, or all if it has **kwargs."""
    parameters = _parameters(function)
    if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(offered)
    return {p.name: offered[p.name] for p in _named(parameters) if p.name in offered}


def read_columns(function: Callable[..., Any], columns: Columns) -> dict[str, Sequence[Any]]:
    """Those of the columns that the function would be given."""
    if not by_keywords(function):
        return {}
    return {name: values for name, values in keywords(function, columns).items() if name not in _ANSWERS[:2]}


def call(
    function: Callable[..., Any], queries: Sequence[str], responses: Sequence[str], columns: Columns | None = None
) -> Any:
    """What the function gives for N answers; a coroutine is run to its end, a generator made a list.

    A function `by_keywords` gets those that it names of `prompts` and `completions` (texts, or for a `Conversation` its
    messages and [{"role": "assistant", "content": response}]), `completion_ids` (None or left out where the answers
    weren't sampled) and the other `columns`, lists of N. Any other gets the queries and the responses, two lists of
    texts.
    """
    if by_keywords(function):
        found = function(**keywords(function, _offered(function, queries, responses, columns or {})))
    else:
        found = function(list(queries), list(responses))
    if inspect.isawaitable(found):
        found = _run(found)
    return list(found) if isinstance(found, Iterator) else found


def _offered(
    function: Callable[..., Any], queries: Sequence[str], responses: Sequence[str], columns: Columns
) -> dict[str, Any]:
    offered: dict[str, Any] = dict(columns)
    offered["prompts"] = [query.messages if isinstance(query, Conversation) else query for query in queries]
    offered["completions"] = [
        [{"role": "assistant", "content": response}] if isinstance(query, Conversation) else response
        for query, response in zip(queries, responses, strict=True)
    ]
    named = {p.name: p.default is p.empty for p in _named(_parameters(function))}  # whether it must have it
    if offered.get(COMPLETION_IDS) is None:
        offered.pop(COMPLETION_IDS, None)
        if named.get(COMPLETION_IDS):
            offered[COMPLETION_IDS] = None
    state = SimpleNamespace(global_step=0, max_steps=0, epoch=0.0, num_train_epochs=0, log_history=[])
    for name, value in zip(_TRAINER, (state, _ignored, _ignored), strict=True):
        if named.get(name, True):
            offered.setdefault(name, value)
    return offered


def _ignored(*_: Any, **__: Any) -> None:
    """What a function logs to TRL's trainer."""


def _run(awaitable: Any) -> Any:
    """The result, by a loop of its own; in a thread where one is running in this."""

    async def waiting() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(waiting())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(contextvars.copy_context().run, asyncio.run, waiting()).result()


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # built in
        return []


def _named(parameters: Iterable[Parameter]) -> list[Parameter]:
    return [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
