"""The reward and the metrics, called on a few of the recipe's own texts before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lib.conversation import prompts_of
from rlhf_lib.errors import ModelError, RewardFailed, RLHFError
from rlhf_lib.models import hub
from rlhf_lib.ppo.evaluation import METRIC, import_metrics, metric_values
from rlhf_lib.recipe import Recipe, RewardConfig
from rlhf_lib.rewards import Reward, checked_terms, sampled_scores, term_scores
from rlhf_lib.rewards.build import build_reward, needed_columns
from rlhf_lib.rewards.calling import Columns, required_columns
from rlhf_lib.rewards.check_scorer import Text
from rlhf_lib.rewards.check_texts import real_rows
from rlhf_lib.rewards.columns import taken
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
    texts, columns = trial_rows(recipe, pairs, alone=bool(needed_columns(recipe.reward)))
    for part in parts:
        with _told(part):
            scores = _scores(build_reward(part, device="cpu"), texts, columns, term=not whole)
    return scores if whole else None  # type: ignore[return-value]


def _scores(reward: Reward, texts: Sequence[Text], columns: Columns, *, term: bool = False) -> list[float | None]:
    """Of the texts, then of empty responses to their queries; a `term` of a sum may say None."""
    ask = term_scores if term else sampled_scores
    queries, responses = [query for query, _ in texts], [response for _, response in texts]
    scores = checked_terms(ask(reward, queries, responses, None, columns), queries, responses, "tried on real texts")
    rows = [row for row, query in enumerate(queries) if query.strip()]
    asked, empty = [queries[row] for row in rows], [""] * len(rows)
    try:
        given = ask(reward, asked, empty, None, taken(columns, rows))
        scores += checked_terms(given, asked, empty, "tried on empty responses")
    except RewardFailed as error:
        what, *frames = str(error).split("\n")
        told = f"{what}, for empty responses, which a policy may give too"
        raise RewardFailed("\n".join([told, *frames])) from error
    return scores


def try_judges(recipe: Recipe, pairs: Dataset | None) -> dict[str, list[float] | None]:
    """The same for each of `evaluation.judges`, by name. Its errors name the judge."""
    found: dict[str, list[float] | None] = {}
    for name, judge in recipe.evaluation.judges.items():
        found[name] = None
        if judge.pairs is not None or judge.has_folder or judge.kind == "llm" or not all(map(cheap, leaves(judge))):
            continue
        with judging(name), _told(judge):
            texts, columns = trial_rows(recipe, pairs, alone=bool(needed_columns(judge)))
            found[name] = _scores(build_reward(judge, device="cpu"), texts, columns)  # type: ignore[assignment]
    return found


def try_metrics(recipe: Recipe, pairs: Dataset | None) -> None:
    """Call `evaluation.metrics` on the same texts, empty responses among them, with a tokenizer that stands in for the
    policy's. Raises RewardFailed where one raises, ModelError where it gives no numbers."""
    if not recipe.evaluation.metrics:
        return
    metrics = import_metrics(recipe.evaluation.metrics)
    texts, columns = trial_rows(recipe, pairs, alone=any(required_columns(metric, METRIC) for metric in metrics))
    rows = [{name: values[row] for name, values in columns.items()} for row in range(len(texts))]
    queries, responses = [query for query, _ in texts] * 2, [response for _, response in texts] + [""] * len(texts)
    metric_values(metrics, queries, responses, rows=rows * 2, tokenizer=train_tokenizer(queries, STAND_IN))


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


def trial_rows(recipe: Recipe, pairs: Dataset | None, *, alone: bool) -> tuple[list[Text], dict[str, list[Any]]]:
    """The same with the prompts' other columns, which the pairs don't have: `alone` is for what needs some."""
    if pairs is None or alone:
        return real_rows(recipe, ROWS)
    return trial_texts(recipe, pairs), {}


def trial_texts(recipe: Recipe, pairs: Dataset | None) -> list[Text]:
    """A few (query, response) of the recipe's own data, none of them blank."""
    if pairs is None:
        return real_rows(recipe, ROWS)[0]
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
