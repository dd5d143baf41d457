"""The reward and the metrics, called on a few of the recipe's own texts before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lib.conversation import prompts_of
from rlhf_lib.errors import ModelError, RewardFailed, RLHFError
from rlhf_lib.models import hub
from rlhf_lib.ppo.evaluation import import_metrics, metric_values
from rlhf_lib.recipe import Recipe, RewardConfig
from rlhf_lib.rewards import Reward, checked_scores
from rlhf_lib.rewards.build import build_reward
from rlhf_lib.rewards.check_texts import real_texts
from rlhf_lib.rewards.judging import judging
from rlhf_lib.training.scratch import train_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 4
CHEAP = 1e9  # bytes of weights that are read for a trial
STAND_IN = 300  # tokens of a tokenizer made for a trial


def try_reward(recipe: Recipe, pairs: Dataset | None) -> list[float] | None:
    """The scores of some real answers, and of an empty answer to each of their queries, which a policy may give too.

    Args:
        pairs: rows with prompt, chosen and rejected; None: texts are made from the prompts' own rows.

    Returns None for a reward that is trained here, and where trying it would mean loading or downloading much; of a sum
    the other terms are tried then. Raises ModelError where the reward doesn't give one finite number a text,
    RewardFailed where it raises.
    """
    whole = can_try(recipe)
    parts = [recipe.reward] if whole else [part for part in leaves(recipe.reward) if _is_there(recipe) and cheap(part)]
    if not parts:
        return None
    texts = trial_texts(recipe, pairs)
    queries, responses = [query for query, _ in texts], [response for _, response in texts]
    scores = None
    for part in parts:
        with _told(part):
            scores = _scores(build_reward(part, device="cpu"), queries, responses)
    return scores if whole else None


def _scores(reward: Reward, queries: list[str], responses: list[str]) -> list[float]:
    scores = checked_scores(reward(queries, responses), queries, responses, "tried on real texts").tolist()
    asked = [query for query in queries if query.strip()]
    empty = [""] * len(asked)
    try:
        scores += checked_scores(reward(asked, empty), asked, empty, "tried on empty responses").tolist()
    except RewardFailed as error:
        what, *frames = str(error).split("\n")
        told = f"{what}, for empty responses, which a policy may give too"
        raise RewardFailed("\n".join([told, *frames])) from error
    return scores


def try_judges(recipe: Recipe, pairs: Dataset | None) -> dict[str, list[float] | None]:
    """The same for each of `evaluation.judges`, by name. Its errors name the judge."""
    found: dict[str, list[float] | None] = {}
    texts: list[tuple[str, str]] = []
    for name, judge in recipe.evaluation.judges.items():
        found[name] = None
        if judge.pairs is not None or judge.has_folder or judge.kind == "llm" or not all(map(cheap, leaves(judge))):
            continue
        texts = texts or trial_texts(recipe, pairs)
        queries, responses = [query for query, _ in texts], [response for _, response in texts]
        with judging(name), _told(judge):
            found[name] = _scores(build_reward(judge, device="cpu"), queries, responses)
    return found


def try_metrics(recipe: Recipe, pairs: Dataset | None) -> None:
    """Call `evaluation.metrics` on the same texts, empty responses among them, with a tokenizer that stands in for the
    policy's. Raises RewardFailed where one raises, ModelError where it gives no numbers."""
    if not recipe.evaluation.metrics:
        return
    texts = trial_texts(recipe, pairs)
    texts += [(query, "") for query, _ in texts]
    queries, responses = [query for query, _ in texts], [response for _, response in texts]
    metric_values(
        import_metrics(recipe.evaluation.metrics), queries, responses, tokenizer=train_tokenizer(queries, STAND_IN)
    )


@contextmanager
def _told(reward: RewardConfig) -> Iterator[None]:
    """Say of which model it is that an error comes; functions say that themselves."""
    try:
        yield
    except RLHFError:
        raise
    except Exception as error:
        names = ", ".join(part.model for part in leaves(reward) if part.model)
        raise ModelError(
            f"the reward model {names} can't score real texts of this recipe ({type(error).__name__}: {error}): do its "
            "weights and its tokenizer belong together?"
        ) from error


def trial_texts(recipe: Recipe, pairs: Dataset | None) -> list[tuple[str, str]]:
    """A few (query, response) of the recipe's own data, none of them blank."""
    if pairs is None:
        return real_texts(recipe, ROWS)
    rows = pairs.select(range(min(ROWS, len(pairs))))
    asked = prompts_of(rows, "prompt")
    return [(prompt, row[side]) for prompt, row in zip(asked, rows, strict=True) for side in ("chosen", "rejected")]


def can_try(recipe: Recipe) -> bool:
    """Whether the reward is there already, and costs little to call."""
    there = _is_there(recipe) and not recipe.reward.has_folder
    return there and all(cheap(reward) for reward in leaves(recipe.reward))


def _is_there(recipe: Recipe) -> bool:
    """Whether the reward doesn't have to be trained first, as a whole."""
    return recipe.data.labelled is None and recipe.reward.kind != "preference"


def leaves(reward: RewardConfig) -> Sequence[RewardConfig]:
    """The rewards that it combines in the end: itself, or the innermost terms and members."""
    return [leaf for part in reward.parts.values() for leaf in leaves(part)] if reward.parts else [reward]


def cheap(reward: RewardConfig) -> bool:
    """A function, or a model of less than CHEAP bytes in a folder or the hub's cache."""
    if reward.kind == "function":
        return True
    if reward.model is None:
        return False
    if hub.is_local(reward.model):
        sizes = [file.stat().st_size for file in Path(reward.model).expanduser().glob("*.safetensors")]
    else:
        sizes = hub.cached_sizes(reward.model, "model.safetensors")
    return bool(sizes) and sum(sizes) < CHEAP
