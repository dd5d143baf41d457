"""Rewards: text in, scores out."""

from collections.abc import Callable

# (queries, responses) -> one score each. A reward sees text, never tokens, and scores a text the same in any batch.
Reward = Callable[[list[str], list[str]], list[float]]
