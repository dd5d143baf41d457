"""Tasks that run one after the other, and look like it in Prefect's graph."""

from __future__ import annotations

from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.utilities.annotations import quote

P = ParamSpec("P")
R = TypeVar("R")


class Chain:
    """Runs tasks in the flow's process: `chain(task, *arguments)`.

    In the graph each follows the one before it. Prefect draws an arrow from every task whose result another takes, and
    a stage takes those of most stages before it; quoted arguments it doesn't follow.
    """

    def __init__(self) -> None:
        self._before: list[Any] = []

    def __call__(self, task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        named: dict[str, Any] = {name: quote(value) for name, value in kwargs.items()}
        run: Any = task
        result: R = run(*map(quote, args), **named, wait_for=self._before)
        self._before = [result]
        return result
