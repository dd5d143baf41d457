"""What a trainer is given, in the forms in which people have it: checked, and turned into what PPO works on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.conversation import MESSAGES, Conversation, checked_messages, is_messages
from rlhf_lib.errors import DataError, ModelError, RecipeError
from rlhf_lib.models.chat import prompt_ids
from rlhf_lib.models.loading import positions
from rlhf_lib.models.policy import Policy
from rlhf_lib.ppo.rollout import end_ids
from rlhf_lib.recipe import GenerationConfig, PPOConfig
from rlhf_lib.rewards import Reward
from rlhf_lib.rewards.calling import required_columns
from rlhf_lib.rewards.columns import row_columns

Row = dict[str, Any]
# texts, lists of token ids, rows, or a data set of rows: see `prompt_rows`
Prompts: TypeAlias = Sequence[str] | Sequence[Sequence[int]] | Sequence[Mapping[str, Any]] | Dataset

TEXT_COLUMNS = ("query", "prompt", "text")
FORMS = "a list of texts, of lists of messages or token ids, a datasets.Dataset, or rows with `query` and `input_ids`"
ORDER = "PPOTrainer(policy, tokenizer, reward, prompts, config, generation)"


def checked_policy(
    policy: Any, tokenizer: PreTrainedTokenizerBase, reward: Any, config: PPOConfig, generation: GenerationConfig
) -> Policy:
    """The policy, once it is sure that it can be trained with the others. Raises RLHFError."""
    made = as_policy(policy)
    check_settings(tokenizer, reward, config, generation)
    check_ends(made, tokenizer, generation)
    return made


def as_policy(model: Policy | PreTrainedModel | PeftModel) -> Policy:
    """The policy, or a model made into one. Raises ModelError for anything else, and where nothing can learn."""
    if isinstance(model, str | Path):
        raise ModelError(
            f"the policy is a name, {model}: load the model, AutoModelForCausalLM.from_pretrained({str(model)!r})"
        )
    if hasattr(model, "pretrained_model"):
        raise ModelError(
            f"the policy is a {type(model).__name__}, which brings a value head of its own: give its "
            ".pretrained_model, or use rlhf_lib.trl_compat.PPOTrainer"
        )
    if not isinstance(model, Policy | PreTrainedModel | PeftModel):
        raise ModelError(
            f"the policy is a {type(model).__name__}: give a Transformers model or a Policy, as in {ORDER}. With TRL's "
            "order, use rlhf_lib.trl_compat.PPOTrainer"
        )
    policy = model if isinstance(model, Policy) else Policy(model)
    check_learns(policy)
    return policy


def check_learns(policy: Policy) -> None:
    """Raises ModelError where no weight of the model learns, or those that do can't."""
    learning = [p for p in policy.model.parameters() if p.requires_grad]
    if not learning:
        raise ModelError(
            "no weight of the model learns: call requires_grad_(True), or load its adapter with is_trainable=True"
        )
    if any(p.dtype == torch.float16 for p in learning):
        raise ModelError("Adam makes NaN of fp16 weights: load them with torch_dtype=torch.bfloat16 or float32")


def check_settings(tokenizer: Any, reward: Any, config: Any, generation: Any) -> None:
    """Raises RecipeError or ModelError for an argument that is no tokenizer, reward or configuration."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(f"the tokenizer is {_kind(tokenizer)}: load it, AutoTokenizer.from_pretrained(...)")
    if not callable(reward) or isinstance(reward, PreTrainedModel | PeftModel):
        raise ModelError(
            f"the reward is {_kind(reward)}: give a function of (queries, responses), two lists of texts, or by "
            "keywords as TRL's, f(prompts, completions, **columns), that returns one number for each response"
        )
    for name, given, expected in (("config", config, PPOConfig), ("generation", generation, GenerationConfig)):
        if not isinstance(given, expected):
            known = f"rlhf_lib.recipe.{expected.__name__}"
            raise RecipeError(f"{name} is {_kind(given)}: give a {known}, as in {ORDER}")


def check_ends(policy: Policy, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> None:
    """Raises ModelError where no response could ever end before its limit, and none is meant to."""
    if generation.ignore_eos or generation.stop is not None:
        return
    ends, tokens = end_ids(policy.model, tokenizer), vocabulary(policy.model)
    if not ends:
        raise ModelError(
            "neither the tokenizer nor the model's generation_config has an EOS token, so no response could end before "
            "its limit. Set tokenizer.eos_token, or generation's stop text; or if every response is to run to its "
            "limit, generation's ignore_eos=True"
        )
    if min(ends) >= tokens:
        raise ModelError(
            f"the EOS token has id {min(ends)}, and the policy knows {tokens} tokens, so no response could end before "
            f"its limit. {_VOCABULARY}"
        )


def vocabulary(model: PreTrainedModel) -> int:
    """How many tokens have an embedding."""
    # not the weight's length: engines that shard weights leave an empty one
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    return int(rows or model.config.get_text_config().vocab_size)


_VOCABULARY = "Use the model's own tokenizer, or model.resize_token_embeddings(len(tokenizer))"


def check_rows(rows: Sequence[Row], policy: Policy, generation: GenerationConfig, what: str) -> None:
    """Raises DataError for a prompt without tokens, or with more than leave room for the longest response; ModelError
    for a token that the policy doesn't know."""
    response, limit, tokens = generation.response_limit, positions(policy.config), vocabulary(policy.model)
    for i, row in enumerate(rows):
        ids = row["input_ids"]
        if not len(ids):
            raise DataError(f"{what}: row {i} has no tokens: drop empty prompts, or put a template around them")
        _check_vocabulary(ids, tokens, f"{what}: row {i}")
        # the last token of a response is never read
        needed = max(len(ids), response) if policy.config.is_encoder_decoder else len(ids) + response - 1
        if needed > limit:
            raise DataError(
                f"{what}: row {i} has {len(ids)} tokens and a response up to {response}, more than the policy's "
                f"{limit} positions: shorten the prompt, lower generation's max_new_tokens, or use a model with more "
                "positions"
            )


def check_columns(reward: Reward, rows: Sequence[Row], what: str) -> None:
    """Raises DataError where the rows lack a column that a reward function can't be called without."""
    there = row_columns(rows)
    for name in required_columns(reward):
        if rows and name not in there:
            listed = f"the columns {', '.join(there)}" if there else "no columns beside the prompts"
            raise DataError(
                f"{what} have {listed}, and the reward function needs {name}: give rows that have it, or give the "
                "parameter a default"
            )


def check_given(policy: Policy, queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> None:
    """Raises ModelError for token ids from elsewhere that the policy has no embedding or no position for."""
    limit = positions(policy.config) if _learnt_positions(policy.model) else None
    tokens = vocabulary(policy.model)
    for i, (query, response) in enumerate(zip(queries, responses, strict=True)):
        for name, ids in (("query", query), ("response", response)):
            _check_vocabulary(ids, tokens, f"{name} {i}")
        if limit is not None and len(query) + len(response) - 1 > limit:
            raise ModelError(
                f"query {i} and its response have {len(query) + len(response)} tokens, more than the policy's {limit} "
                "positions: shorten them, or use a model with more positions"
            )


def _check_vocabulary(ids: Sequence[int], tokens: int, where: str) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < tokens:
        bad = next(i for i in ids if not 0 <= i < tokens)
        raise ModelError(f"{where} has the token {bad}, and the policy knows {tokens} tokens. {_VOCABULARY}")


def _learnt_positions(model: PreTrainedModel) -> bool:
    """Whether positions come from a table, which has no more than it has; others are computed for any."""
    if model.config.is_encoder_decoder:
        return False
    tables = (name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    return any(name.endswith("wpe") or "position" in name for name in tables)


# ------------------------------------------------------------ prompts


def prompt_rows(
    prompts: Prompts, tokenizer: PreTrainedTokenizerBase, column: str | None = None, *, what: str = "prompts"
) -> list[Row]:
    """Rows with `query`, the text that the reward sees, and `input_ids`, what the policy continues.

    - A text is the query, and its tokens are the ids.
    - A list of messages, or the `messages` of a row, is a conversation, rendered in the tokenizer's chat template.
    - Token ids (a list, array or tensor of whole numbers) are the ids, and their text is the query.
    - A row (a mapping, or a data set's) has either or both: `input_ids`, and the text in `column`, or else in `query`,
      `prompt` or `text`. With `query` and `prompt`, the policy continues the prompt and the reward sees the query. Its
      other columns stay: the reward and metrics see them.

    `what` names the argument in errors. Raises DataError for anything else, naming the row.
    """
    if isinstance(prompts, Dataset):
        _check_column(prompts.column_names, column, what)
    given = _listed(prompts, what)
    if not given:
        raise DataError(f"PPO has no {what}: the list or data set is empty")
    rows = [_row(value, column, f"{what}: row {i}") for i, value in enumerate(given)]
    _render([row for row in rows if "input_ids" not in row and isinstance(row["query"], Conversation)], tokenizer, what)
    untokenized = [row for row in rows if "input_ids" not in row]
    if untokenized:
        texts = [row.pop(_CONTINUED) for row in untokenized]
        for row, ids in zip(untokenized, tokenizer(texts, verbose=False).input_ids, strict=True):
            row["input_ids"] = ids
    for row in rows:
        if "query" not in row:
            row["query"] = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
    return rows


_CONTINUED = "\0continued"  # a row's text until it is tokenized


def _render(rows: list[Row], tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Give conversations their tokens."""
    if rows and tokenizer.chat_template is None:
        raise DataError(f"{what} are messages, and the tokenizer has no chat_template: set one, or give texts")
    for row, ids in zip(rows, prompt_ids(tokenizer, [row["query"] for row in rows]), strict=True):
        row.pop(_CONTINUED)
        row["input_ids"] = ids


def _listed(prompts: Any, what: str) -> list[Any]:
    if isinstance(prompts, Dataset):
        return prompts.to_list()
    if isinstance(prompts, str):
        raise DataError(f"{what} is one text: put it into a list")
    if isinstance(prompts, Mapping):
        keys = ", ".join(map(str, list(prompts)[:8]))
        raise DataError(f"{what} is {_kind(prompts)} of {keys}: give one of these. It can be {FORMS}")
    if not hasattr(prompts, "__len__") or not isinstance(prompts, Iterable) or hasattr(prompts, "iterrows"):
        raise DataError(f"{what} is {_kind(prompts)}: give {FORMS}")
    return list(prompts)


def _row(value: Any, column: str | None, where: str) -> Row:
    if is_messages(value):
        value = {"messages": value}
    if not isinstance(value, Mapping):
        found = _ids_or_text(value, where)
        return {"query": found, _CONTINUED: found} if isinstance(found, str) else {"input_ids": found}
    row = dict(value)
    if column is None and row.get(MESSAGES):
        return _conversation(row, row.pop(MESSAGES), f"{where}, column {MESSAGES}")
    if column is None and "input_ids" in row:
        return row | {"input_ids": _ids(row["input_ids"], f"{where}, input_ids")}
    _check_column(row, column, where)
    name = column or next(known for known in TEXT_COLUMNS if known in row)
    if is_messages(row[name]):
        return _conversation(row, row[name], f"{where}, column {name}")
    found = _ids_or_text(row[name], f"{where}, column {name}")
    if not isinstance(found, str):
        return row | {"input_ids": found}
    row.pop("input_ids", None)
    continued = row["prompt"] if column is None and isinstance(row.get("prompt"), str) else found
    return row | {"query": found, _CONTINUED: continued}


def _conversation(row: Row, messages: Any, where: str) -> Row:
    query = Conversation(checked_messages(messages, where))
    return row | {"query": query} | ({} if "input_ids" in row else {_CONTINUED: query})


def _check_column(columns: Iterable[str], column: str | None, where: str) -> None:
    present = [str(name) for name in columns]
    if column is not None and column not in present:
        near = difflib.get_close_matches(column, present, n=1)
        hint = f": did you mean {near[0]}?" if near else "."
        raise DataError(f"{where} has no column {column}{hint} There are {', '.join(present)}")
    if column is None and not {"input_ids", MESSAGES, *TEXT_COLUMNS} & set(present):
        raise DataError(
            f"{where} has the columns {', '.join(present)}, and none of query, prompt, text or input_ids: name the one "
            "that holds the prompts, prompt_column=..."
        )


def _ids_or_text(value: Any, where: str) -> str | list[int]:
    return str(value) if isinstance(value, str) else _ids(value, where)


def _ids(value: Any, where: str) -> list[int]:
    """Token ids as a list. Raises DataError where they are none."""
    ids = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(ids, list | tuple) and all(isinstance(i, Integral) for i in ids):
        if ids and min(ids) < 0:
            raise DataError(f"{where} has {min(ids)} among its token ids: leave out what pads or masks a prompt")
        return [int(i) for i in ids]
    raise DataError(f"{where} is {value!r:.80}, neither a text nor a list of token ids")


def _kind(value: Any) -> str:
    """What something is, for a message: "None", "a dict"."""
    if value is None:
        return "None"
    kind = type(value)
    own = f"{kind.__module__}.{kind.__name__}" if kind.__name__.endswith("Config") else kind.__name__
    return f"{'an' if own[0] in 'aeiouAEIOU' else 'a'} {own}"
