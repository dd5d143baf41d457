"""Plain texts, to train a base model on or to measure perplexity on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlhf_lib.conversation import SYSTEM, Conversation, Transcript, columns_of, dialogue_messages
from rlhf_lib.data.dialogue import HUMAN, first_exchange
from rlhf_lib.data.joined import Datasets
from rlhf_lib.data.prompts import cut, draw_length, with_template
from rlhf_lib.data.sources import (
    Funnel,
    describe_source,
    first_seen,
    holds_messages,
    load_sources,
    load_split,
    messages_column,
    mixture,
    sources,
    text_column,
)
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import PerplexitySetConfig, PolicyConfig, Recipe
from rlhf_lib.recipe import PromptsConfig as PromptSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Corpus:
    """Columns `prompt` (what the model is given: empty for a causal model, the conversation for a chat model) and
    `chosen` (what it learns to write; of a conversation its last answer)."""

    train: Dataset
    test: Dataset
    report: dict[str, Any]


def load_corpus(recipe: Recipe, loaded: Mapping[str, Dataset] | None = None, *, chat: bool = False) -> Corpus:
    """The recipe's corpus in an order drawn with its seed, cut where the policy is a seq2seq model, with `chat` as
    conversations.

    Dropped and counted: empty texts, duplicates, texts that end with their query (`no text after the query`), training
    texts that are test texts, and those above `limit`. Of several sets joined, training texts are taken as often as
    their set's weight says.

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
        texts = told(loaded[f"corpus/{split}"], settings.column, where, "data.corpus.column")
        sets = mixture(recipe, f"corpus/{split}", loaded[f"corpus/{split}"], texts)
        full = [bool(text.strip()) for text in texts]
        texts = funnel.keep("empty", texts, full, f"Does '{settings.column}' hold the texts? Set data.corpus.column")
        texts = funnel.keep("duplicate", texts, first_seen(texts), "")
        if split == "train":
            held_out = {text for text, _, _ in rows["test"]}
            texts = funnel.keep(
                "in test",
                texts,
                (text not in held_out for text in texts),
                "Training and test texts are the same: point data.corpus.test at other rows, e.g. by a split slice",
            )
        cuts: list[tuple[str, str, str]]
        if chat:
            cuts = [(text, *_answered(text, recipe.policy.system, where, settings.column)) for text in texts]
        else:
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
    rows["train"], taken = sets.take(rows["train"], [text for text, _, _ in rows["train"]], recipe.seed)
    report["train"] |= taken
    return Corpus(_dataset(rows["train"]), _dataset(rows["test"]), report)


def is_seq2seq(recipe: Recipe) -> bool:
    """Whether the recipe's policy has an encoder. Raises ModelError if its model is missing."""
    from rlhf_lib.models.loading import load_config

    scratch = recipe.policy.train.from_scratch if recipe.policy.train else None
    if scratch is not None:
        return scratch.architecture == "t5"
    assert recipe.policy.model is not None, "the recipe requires a model here"
    return bool(load_config(recipe.policy.model, recipe.policy.trust_remote_code).is_encoder_decoder)


def cut_text(text: str, recipe: Recipe) -> tuple[str, str]:
    """The prompt as the policy sees it, and what follows it, with the white space that joins them.

    Raises DataError for a text that is not a dialogue though the query kind needs one, or a kind that cuts no text.
    """
    prompts = recipe.data.prompts
    query, rest = cut(text, prompts.query, recipe.seed, "set it to first_words, or to dialogue for dialogues")
    return with_template(query, prompts), rest


def _dataset(rows: list[tuple[str, str, str]]) -> Dataset:
    from datasets import Dataset

    prompts = columns_of([prompt for _, prompt, _ in rows], "prompt")
    return Dataset.from_dict(prompts | {"chosen": [rest for _, _, rest in rows]})


def told(dataset: Dataset, column: str, where: str, key: str) -> list[str]:
    """A column of texts, or of conversations as the dialogues that they are."""
    if not holds_messages(dataset, column):
        return text_column(dataset, column, where, key)
    rows = messages_column(dataset, column, where)
    return [Transcript(messages) for messages in rows]


def _answered(text: str, system: str | None, where: str, column: str) -> tuple[Conversation, str]:
    """A text as the conversation up to its last answer, and that answer."""
    messages = text.messages if isinstance(text, Transcript) else dialogue_messages(text)
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError(
            f"{where}, column '{column}': a chat model learns conversations that end with an answer, and this is none: "
            f"{text!r:.120}. Name a column of messages or of dialogues, or set policy.chat to off"
        )
    return Conversation(messages[:-1]).after(system), messages[-1]["content"]


def load_texts(
    source: PerplexitySetConfig,
    default: Datasets = None,
    *,
    seed: int = 0,
    prompts: PromptSettings | None = None,
    chat: PolicyConfig | None = None,
) -> tuple[list[str], list[str] | None]:
    """The texts of the recipe's perplexity set, or `source.limit` of them drawn with the seed, in the set's order; and
    the prompt of each, where they are to be scored given one: from the column `source.prompt`, or where `prompts` is
    given (a seq2seq policy) cut off the text as it says. Texts with nothing left to score are left out then. `chat`:
    the section of a chat policy, for which dialogues and conversations are answers given what was said before.

    `default` is the data set where the source names none. Raises DataError for a missing set or column, or no text.
    """
    dataset, where = load_split(source, default, "evaluation.perplexity"), describe_source(source, default)
    if source.limit and source.limit < len(dataset):
        drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[: source.limit]
        dataset = dataset.select(sorted(drawn.tolist()))
    if not len(dataset):
        raise DataError(f"{where} has no rows: set evaluation.perplexity.split")
    texts = told(dataset, source.column, where, "evaluation.perplexity.column")
    if source.prompt is not None:
        given = text_column(dataset, source.prompt, where, "evaluation.perplexity.prompt")
        pairs = list(zip(given, texts, strict=True))
        if chat is not None:
            return texts, [Conversation.of(prompt, chat.system) for prompt in given]
    elif chat is not None and all(isinstance(text, Transcript) or text.startswith((HUMAN, SYSTEM)) for text in texts):
        answered = [_answered(text, chat.system, where, source.column) for text in texts]
        return [answer for _, answer in answered], [prompt for prompt, _ in answered]
    elif prompts is None:
        return texts, None
    else:
        pairs = [cut(text, prompts.query, seed, "set evaluation.perplexity.prompt") for text in texts]
    template = (prompts.template if prompts else None) or "{query}"
    pairs = [(template.replace("{query}", prompt), text) for prompt, text in pairs if prompt and text]
    if not pairs:
        fix = "evaluation.perplexity.column" if source.prompt else "data.prompts.query, min and max"
        raise DataError(f"{where}: no text has something after its prompt to score. Change {fix}")
    return [text for _, text in pairs], [prompt for prompt, _ in pairs]


def split_answers(
    texts: Sequence[str], settings: PromptSettings, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[list[str], list[str]] | None:
    """(answers, the prompt of each as the policy sees it): each text cut where `data.prompts.query` ends its query.

    Texts that it can't cut, or that have nothing after their query, are left out; None where none is left. So it is for
    the kind `text`, whose queries are whole texts, and for `first_tokens` with a tokenizer that doesn't tell where its
    tokens lie.
    """
    query = settings.query
    if query.kind == "text" or (query.kind == "first_tokens" and not tokenizer.is_fast):
        return None
    pairs = []
    for text in texts:
        try:
            if query.kind == "first_turn":
                asked, answer = first_exchange(text)
            elif query.kind == "first_tokens":
                asked, answer = _after_tokens(text, draw_length(query, seed, text), tokenizer)
            else:
                asked, answer = cut(text, query, seed, "")
        except DataError:  # the set may hold other texts than the prompts' set
            continue
        if asked.strip() and answer.strip():
            pairs.append((answer, with_template(asked, settings)))
    return ([answer for answer, _ in pairs], [prompt for _, prompt in pairs]) if pairs else None


def _after_tokens(text: str, count: int, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The text of the first so many tokens, and the rest."""
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    end = places[min(count, len(places)) - 1][1] if places else 0
    return text[:end], text[end:]
