"""The texts whose perplexity is measured, and the prompt of each where they are scored given one."""

from __future__ import annotations

import torch

from rlhf_lib.data.prompts import cut
from rlhf_lib.data.sources import load_split
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import PerplexitySetConfig
from rlhf_lib.recipe import PromptsConfig as PromptSettings


def load_texts(
    source: PerplexitySetConfig, default: str | None = None, *, seed: int = 0, prompts: PromptSettings | None = None
) -> tuple[list[str], list[str] | None]:
    """The texts of the recipe's perplexity set, or `source.limit` of them drawn with the seed, in the set's order; and
    the prompt of each, where they are to be scored given one: from the column `source.prompt`, or where `prompts` is
    given (a seq2seq policy) cut off the text as it says. Texts with nothing left to score are left out then.

    `default` is the data set where the source names none. Raises DataError for a missing set or column, or no text.
    """
    # where the set is the prompts' own, theirs is the key to mend
    key = "evaluation.perplexity" if source.dataset is not None else "data.prompts"
    dataset = load_split(source, default=default, key=key)
    for name, column in (("column", source.column), ("prompt", source.prompt)):
        if column is not None and column not in dataset.column_names:
            raise DataError(
                f"evaluation.perplexity.{name}: {source.dataset or default} has no column '{column}', only "
                f"{', '.join(dataset.column_names)}"
            )
    if source.limit and source.limit < len(dataset):
        drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[: source.limit]
        dataset = dataset.select(sorted(drawn.tolist()))
    if not len(dataset):
        raise DataError(f"evaluation.perplexity: {source.dataset or default}, split {source.split}, has no rows")
    texts = list(dataset[source.column])
    if source.prompt is not None:
        pairs = list(zip(dataset[source.prompt], texts, strict=True))
    elif prompts is None:
        return texts, None
    else:
        pairs = [cut(text, prompts.query, seed, "set evaluation.perplexity.prompt") for text in texts]
    template = (prompts.template if prompts else None) or "{query}"
    pairs = [(template.replace("{query}", prompt), text) for prompt, text in pairs if prompt and text]
    if not pairs:
        raise DataError(
            f"evaluation.perplexity: {source.dataset or default} has no text with something after its prompt"
        )
    return [text for _, text in pairs], [prompt for prompt, _ in pairs]
