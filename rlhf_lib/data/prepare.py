"""All of a recipe's data, read and filtered, with an account of every row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_lib.data.corpus import Corpus, load_corpus
from rlhf_lib.data.labelled import LabelledTexts, load_labelled
from rlhf_lib.data.losses import SHARED
from rlhf_lib.data.preferences import Pairs, load_preferences
from rlhf_lib.data.prompt_tokens import tokenize_splits
from rlhf_lib.data.prompts import load_prompts, shared_with_pairs
from rlhf_lib.recipe import Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Splits = dict[str, "Dataset"]


@dataclass(frozen=True)
class Prepared:
    """The rows that the stages work with; what the recipe doesn't have is None. `report`: rows, dropped, kept."""

    texts: Splits  # the prompts
    tokenized: Splits | None  # the same as tokens, where the tokenizer is known
    pairs: Pairs | None
    corpus: Corpus | None
    labelled: LabelledTexts | None
    report: dict[str, Any]


def prepare(
    recipe: Recipe,
    loaded: Mapping[str, Dataset],
    tokenizer: tuple[PreTrainedTokenizerBase, int] | None = None,
) -> Prepared:
    """Filter the splits that `load_sources` opened.

    Args:
        tokenizer: the policy's, with the positions of its model; None while it is still to be trained.

    Raises:
        DataError: whatever is wrong with the rows, or a filter that leaves nothing.
    """
    # of a tokenizer that is still to be trained, the recipe gives the template
    chat = bool(recipe.policy.chat_template) if tokenizer is None else tokenizer[0].chat_template is not None
    prompts = load_prompts(recipe, loaded, chat=chat)
    texts = {"train": prompts.train, "test": prompts.test}
    report: dict[str, Any] = {"prompts": prompts.report}
    tokenized: Splits | None = None
    if tokenizer is not None:
        train, test, report["tokenized"] = tokenize_splits(texts["train"], texts["test"], recipe, *tokenizer)
        tokenized = {"train": train, "test": test}
    pairs = None
    if recipe.data.preferences is not None:
        pairs = load_preferences(recipe, loaded, chat=chat)
        report["preferences"] = pairs.report
        shared = shared_with_pairs(prompts, pairs.train["prompt"], recipe.data.prompts.query)
        report |= {SHARED: shared} if shared is not None else {}
    corpus = load_corpus(recipe, loaded, chat=chat) if recipe.data.corpus is not None else None
    labelled = load_labelled(recipe, loaded, chat=chat) if recipe.data.labelled is not None else None
    report |= {kind: made.report for kind, made in (("corpus", corpus), ("labelled", labelled)) if made}
    return Prepared(texts, tokenized, pairs, corpus, labelled, report)
