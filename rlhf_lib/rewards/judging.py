"""Asking a judge, a reward that PPO doesn't optimise: its scores, and its name in whatever is raised."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rlhf_lib.errors import RLHFError
from rlhf_lib.rewards import Reward, checked_scores, term_scores
from rlhf_lib.rewards.calling import Columns


@contextmanager
def judging(name: str) -> Iterator[None]:
    """Name the judge, and its keys instead of the reward's, in what is raised."""
    try:
        yield
    except RLHFError as error:
        own = f"evaluation.judges.{name}"
        told = re.sub(r"\breward\.(?=[a-z])", f"{own}.", str(error))
        raise type(error)(told if own in told else f"{own}: {told}") from error


def ask(
    judge: Reward,
    name: str,
    queries: Sequence[str],
    texts: Sequence[str],
    ended: Sequence[bool] | None = None,
    columns: Columns | None = None,
) -> list[float]:
    """The judge's scores of the responses `texts` (N,); `ended` and `columns` as in `sampled_scores`. Raises ModelError
    unless they are N finite numbers."""
    with judging(name):
        given = term_scores(judge, queries, texts, ended, columns)
        return checked_scores(given, queries, texts, f"of judge {name}").tolist()
