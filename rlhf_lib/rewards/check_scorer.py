"""A reward under check: its scores, counted, with a note of those that aren't finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_lib.data.dialogue import ASSISTANT
from rlhf_lib.errors import ModelError
from rlhf_lib.recipe import ChecksConfig
from rlhf_lib.rewards import Reward, sampled_scores
from rlhf_lib.rewards.calling import Columns
from rlhf_lib.rewards.check_measures import Scores
from rlhf_lib.rewards.columns import taken
from rlhf_lib.statistics import LEAST_FOR_INTERVAL

Text = tuple[str, str]  # query, response
Pair = tuple[str, str, str]  # prompt, chosen, rejected


class Scorer:
    """The reward, with a count of its scores and a note of the non-finite ones by kind of text. `columns`: the prompts'
    others, for texts that are told by their row."""

    def __init__(self, reward: Reward, columns: Columns | None = None):
        self.reward, self.columns = reward, columns or {}
        self.total = 0
        self.nonfinite: dict[str, int] = {}

    def __call__(self, kind: str, texts: Sequence[Text], rows: Sequence[int] | None = None) -> Scores:
        """The scores (N,); `rows`: whose columns each text has, None: none."""
        queries, responses = [query for query, _ in texts], [response for _, response in texts]
        columns = {} if rows is None else taken(self.columns, rows)
        scores_N = np.asarray(sampled_scores(self.reward, queries, responses, columns=columns), dtype=np.float64)
        if scores_N.shape != (len(texts),):
            raise ModelError(
                f"the reward gave scores of shape {scores_N.shape} for {len(texts)} texts: expected one each"
            )
        self.total += len(texts)
        if bad := int((~np.isfinite(scores_N)).sum()):
            self.nonfinite[kind] = self.nonfinite.get(kind, 0) + bad
        return scores_N


def finite(*scores: Scores) -> NDArray[np.bool_]:
    """Where all the rows (N,) are finite: (N,)."""
    return np.logical_and.reduce([np.isfinite(row) for row in scores])


def prompts_matter(checks: ChecksConfig, prompts: Sequence[str]) -> bool:
    """Whether a good reward has to read the prompt: the pairs are its yardstick (`min_accuracy`), and most are
    dialogues, whose prompts differ."""
    varied = len(set(prompts)) >= LEAST_FOR_INTERVAL
    spoken = 2 * sum(prompt.endswith(ASSISTANT) for prompt in prompts) > len(prompts)
    return checks.min_accuracy is not None and varied and spoken
