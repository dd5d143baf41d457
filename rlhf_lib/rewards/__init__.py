"""Rewards: text in, scores out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from rlhf_lib.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

# (queries, responses) -> one score each. A reward sees text, never tokens, and scores a text the same in any batch.
Reward = Callable[[list[str], list[str]], list[float]]


def sampled_scores(
    reward: Reward, queries: Sequence[str], responses: Sequence[str], ended: Sequence[bool]
) -> list[float]:
    """The reward of sampled responses, of which some `ended` themselves and the others were cut off at their limit.

    A reward whose attribute `reads_ends` is true is told which did, by the keyword `ended`: a preference model reads an
    EOS there alone, as a text that goes on must not be paid as a finished one. Others are called as ever.
    """
    if getattr(reward, "reads_ends", False):
        return reward(list(queries), list(responses), ended=list(ended))  # type: ignore[call-arg]
    return reward(list(queries), list(responses))


def checked_scores(given: Iterable[float], queries: Sequence[str], responses: Sequence[str], where: str) -> Tensor:
    """A reward's scores as a tensor (B,), fp64. `where` tells in the message which reward, or when.

    Raises ModelError unless it is one finite number for each response.
    """
    import torch

    if isinstance(given, str | bytes | Mapping | Set) or not isinstance(given, Iterable):
        raise ModelError(
            f"the reward {where} gave {given!r:.80}: it must give a list of numbers, one for each response"
        )
    listed = list(given)
    if len(listed) != len(responses):
        raise ModelError(f"the reward {where} gave {len(listed)} scores for {len(responses)} responses")
    scores = []
    for score in listed:
        try:
            scores.append(math.nan if isinstance(score, str) else float(score))
        except (TypeError, ValueError):
            scores.append(math.nan)
    scores_B = torch.tensor(scores, dtype=torch.float64)
    if not scores_B.isfinite().all():
        bad = int((~scores_B.isfinite()).nonzero()[0])
        raise ModelError(
            f"the reward {where} gave {listed[bad]!r:.80} for the query {queries[bad]!r:.200} with the response "
            f"{responses[bad]!r:.200}: a score must be a finite number"
        )
    return scores_B
