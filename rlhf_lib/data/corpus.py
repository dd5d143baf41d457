"""Plain texts that a base model is trained on: whole for a causal model, cut after their query for a seq2seq one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_lib.data.filters import Funnel, first_seen
from rlhf_lib.data.prompts import cut, with_template
from rlhf_lib.data.sources import describe_source, load_sources, sources, text_column
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import Recipe

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Corpus:
    """Columns `prompt` (what the model is given: empty for a causal model) and `chosen` (what it learns to write)."""

    train: Dataset
    test: Dataset
    report: dict[str, Any]


def load_corpus(recipe: Recipe, loaded: Mapping[str, Dataset] | None = None) -> Corpus:
    """The recipe's corpus in an order drawn with its seed, cut where the policy is a seq2seq model.

    Dropped and counted: empty texts, duplicates, texts that end with their query (`no text after the query`), training
    texts that are test texts, and those above `limit`.

    Args:
        loaded: the splits as `load_sources` opens them, where the caller has them already.

    Raises:
        DataError: missing set, split or column, a filter that leaves nothing, or a query kind that doesn't cut a
            text in two for a seq2seq model.
    """
    settings = recipe.data.corpus
    if settings is None:
        raise DataError("data.corpus is null: this recipe has no corpus")
    seq2seq = is_seq2seq(recipe)
    loaded = loaded or load_sources(recipe, "corpus")
    described = {role: describe_source(source, default) for role, (source, default, _) in sources(recipe).items()}
    rows: dict[str, list[tuple[str, str, str]]] = {}  # text, prompt, what follows
    funnels: dict[str, Funnel] = {}
    for split in ("test", "train"):
        where = described[f"corpus/{split}"]
        funnel = Funnel(where, len(loaded[f"corpus/{split}"]))
        texts = text_column(loaded[f"corpus/{split}"], settings.column, where, "data.corpus.column")
        full = [bool(text.strip()) for text in texts]
        texts = funnel.keep("empty", texts, full, f"Does column '{settings.column}' hold the texts?")
        texts = funnel.keep("duplicate", texts, first_seen(texts), "")
        if split == "train":
            held_out = {text for text, _, _ in rows["test"]}
            texts = funnel.keep(
                "in test",
                texts,
                (text not in held_out for text in texts),
                "Training and test texts are the same: point data.corpus.test at other rows, e.g. by a split slice",
            )
        cuts = [(text, *(cut_text(text, recipe) if seq2seq else ("", text))) for text in texts]
        rows[split] = funnel.keep(
            "no text after the query",
            cuts,
            (bool(rest.strip()) for _, _, rest in cuts),
            "Shorten data.prompts.query, min and max",
        )
        funnels[split] = funnel
    for stream, split in ((1, "train"), (2, "test")):
        order = np.random.default_rng([recipe.seed, stream]).permutation(len(rows[split]))
        rows[split] = [rows[split][i] for i in order]
    if settings.limit is not None:
        funnels["train"].dropped["limit"] = max(0, len(rows["train"]) - settings.limit)
        rows["train"] = rows["train"][: settings.limit]
    report = {split: funnels[split].report(len(rows[split])) for split in ("train", "test")}
    return Corpus(_dataset(rows["train"]), _dataset(rows["test"]), report)


def is_seq2seq(recipe: Recipe) -> bool:
    """Whether the recipe's policy has an encoder. Raises ModelError where its model is absent."""
    from rlhf_lib.models.loading import load_config

    scratch = recipe.policy.train.from_scratch if recipe.policy.train else None
    if scratch is not None:
        return scratch.architecture == "t5"
    assert recipe.policy.model is not None, "the recipe requires a model here"
    return bool(load_config(recipe.policy.model, recipe.policy.trust_remote_code).is_encoder_decoder)


def cut_text(text: str, recipe: Recipe) -> tuple[str, str]:
    """(the prompt as the policy meets it, what follows it, with the white space that joins them).

    Raises DataError for a text that is no dialogue though the query kind asks for one, or a kind that cuts no text.
    """
    prompts = recipe.data.prompts
    query, rest = cut(text, prompts.query, recipe.seed, "set it to first_words, or to dialogue for dialogues")
    return with_template(query, prompts), rest


def _dataset(rows: list[tuple[str, str, str]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [prompt for _, prompt, _ in rows], "chosen": [rest for _, _, rest in rows]})
