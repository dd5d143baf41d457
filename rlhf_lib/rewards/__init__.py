"""Rewards: text in, scores out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from rlhf_lib.errors import ModelError
from rlhf_lib.rewards.calling import Columns, call

if TYPE_CHECKING:
    from torch import Tensor

# One score an answer, from text, the same in any batch. A function of the user's has one of two forms: that of TRL's
# GRPO, f(prompts, completions, **columns), called with the keywords that it names, or f(queries, responses). Ours have
# the second, and take the keywords `ended` and `columns` where an attribute `reads_ends` or `reads_columns` is true.
Reward = Callable[..., Any]


def sampled_scores(
    reward: Reward,
    queries: Sequence[str],
    responses: Sequence[str],
    ended: Sequence[bool] | None = None,
    columns: Columns | None = None,
) -> list[float]:
    """The reward of N responses, whatever its form.

    Args:
        ended: which of them ended themselves, the others being cut off at their limit; None: all. A preference model
            reads an EOS there alone, as a text that goes on must not be paid as a finished one.
        columns: the prompts' other columns, and `completion_ids` where the responses were sampled: N values each.

    Raises ModelError where the reward doesn't apply to a response (None).
    """
    scores = term_scores(reward, queries, responses, ended, columns)
    if isinstance(scores, list | tuple) and len(scores) == len(responses) and None in scores:
        bad = scores.index(None)
        raise ModelError(f"the reward gave None for {quoted_answer(queries, responses, bad)}. {_NONE}")
    return scores  # type: ignore[return-value]


def term_scores(
    reward: Reward,
    queries: Sequence[str],
    responses: Sequence[str],
    ended: Sequence[bool] | None = None,
    columns: Columns | None = None,
) -> list[float | None]:
    """The same of a term of a sum, which says None where it doesn't apply to a response."""
    told: dict[str, Any] = {}
    if getattr(reward, "reads_ends", False):
        told["ended"] = [True] * len(responses) if ended is None else list(ended)
    if getattr(reward, "reads_columns", False):
        told["columns"] = columns
    if told:
        return reward(list(queries), list(responses), **told)
    return call(reward, queries, responses, columns)


def checked_scores(given: Any, queries: Sequence[str], responses: Sequence[str], where: str) -> Tensor:
    """A reward's scores as a tensor (B,), fp64. `where` tells in the message which reward, or when.

    Raises ModelError unless it is one finite number for each response.
    """
    import torch

    scores = checked_terms(given, queries, responses, where)
    if None in scores:
        answer = quoted_answer(queries, responses, scores.index(None))
        raise ModelError(f"the reward {where} gave None for {answer}. {_NONE}")
    return torch.tensor(scores, dtype=torch.float64)


def checked_terms(given: Any, queries: Sequence[str], responses: Sequence[str], where: str) -> list[float | None]:
    """The same as a list of N, None allowed: the reward doesn't apply to that response."""
    if isinstance(given, str | bytes | Mapping | Set) or not isinstance(given, Iterable):
        raise ModelError(
            f"the reward {where} gave {given!r:.80}: it must give a list of numbers, one for each response"
        )
    listed = list(given)
    if len(listed) != len(responses):
        raise ModelError(f"the reward {where} gave {len(listed)} scores for {len(responses)} responses")
    scores: list[float | None] = []
    for row, score in enumerate(listed):
        try:
            number = None if score is None else math.nan if isinstance(score, str) else float(score)
        except (TypeError, ValueError):
            number = math.nan
        if number is not None and not math.isfinite(number):
            raise ModelError(
                f"the reward {where} gave {score!r:.80} for {quoted_answer(queries, responses, row)}: a score must be "
                "a finite number"
            )
        scores.append(number)
    return scores


def timeouts(reward: Reward) -> int | None:
    """How many answers a function that runs isolated, or those among the parts of a reward, couldn't score within
    their time and memory so far; None where none is isolated."""
    return getattr(reward, "timeouts", None)


def timeouts_of(parts: Iterable[Reward]) -> int | None:
    """The same of several together."""
    counts = [count for part in parts if (count := timeouts(part)) is not None]
    return sum(counts) if counts else None


_NONE = (
    "None says that a reward doesn't apply to an answer, which only a term of a sum may say: give a number, or make it "
    "one of the terms of reward.kind sum"
)


def quoted_answer(queries: Sequence[str], responses: Sequence[str], row: int) -> str:
    """The answer of a row as messages name it."""
    return f"the query {queries[row]!r:.200} with the response {responses[row]!r:.200}"
