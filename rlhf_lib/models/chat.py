"""Chat templates: conversations in token ids, as a model's own tokenizer renders them.

Nothing is rendered by hand: transformers' `apply_chat_template` does it, in batches, and encodes control tokens that
somebody typed into a message as text. What a recipe says of the template (a file, variables, the date) is put into the
tokenizer's template once, so that whatever is saved with it, a reward model or a served policy, renders alike.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_lib.conversation import Conversation, Message, Transcript, user
from rlhf_lib.errors import DataError, ModelError
from rlhf_lib.models.loading import load_tokenizer

if TYPE_CHECKING:
    from rlhf_lib.recipe import PolicyConfig

_BAKED = "{# as the recipe says #}"  # ends what `set_template` puts in front of a template
_DATES = re.compile(r"strftime_now\(\s*(['\"])(.+?)\1\s*\)")
_CONTROL = re.compile(r"<\|\w+\|>")
_THOUGHT, _THINKING = "</think>", "<think>"


def policy_tokenizer(policy: PolicyConfig, model: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of `model` (a folder or hub id; None: `policy.model`) with the policy's chat template: None in it
    where prompts are plain texts. Raises ModelError where it is absent, or its template can't do what the recipe says.
    """
    name = model or policy.model
    assert name is not None, "a policy that is made from scratch has a folder by now"
    tokenizer = load_tokenizer(name, policy.trust_remote_code)
    set_template(tokenizer, policy)
    return tokenizer


def asks_in_conversations(policy: PolicyConfig) -> bool:
    """Whether the recipe's policy continues conversations, as far as is known before it is made."""
    if policy.chat == "off" or policy.model is None:
        return policy.chat != "off" and policy.chat_template is not None
    return policy_tokenizer(policy).chat_template is not None


def tokenizer_of(policy: PolicyConfig | None, model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of one of several models that answer a recipe's prompts: each has its own chat template, and the
    one that the recipe's `policy` names what the recipe says of it."""
    if policy is not None and (model == policy.model or policy.chat == "off"):
        return policy_tokenizer(policy, model)
    return load_tokenizer(model, policy is not None and policy.trust_remote_code)


def set_template(tokenizer: PreTrainedTokenizerBase, policy: PolicyConfig) -> None:
    """Give the tokenizer the template that the recipe wants, and try it. In place; again, and nothing changes."""
    if policy.chat == "off":
        tokenizer.chat_template = None
        return
    template = policy.chat_template or _own(tokenizer)
    if template is None:
        if policy.system or policy.chat_template_kwargs:
            raise ModelError(
                f"the tokenizer of {policy.model} has no chat template, so policy.system and "
                "policy.chat_template_kwargs do nothing: set policy.chat_template, or drop them"
            )
        return
    tokenizer.chat_template = baked(template, policy.chat_template_kwargs, policy.chat_date)
    if lacking := [token for token in control_tokens(template) if token not in tokenizer.get_vocab()]:
        if policy.train is None:
            raise ModelError(
                f"the tokenizer of {policy.model} lacks {', '.join(lacking)}, which policy.chat_template writes: set "
                "policy.train, which learns them, or another template"
            )
        if policy.lora is not None:
            raise ModelError(
                f"policy.chat_template writes {', '.join(lacking)}, which are new to {policy.model}, and LoRA learns "
                "no new tokens: set policy.lora to null, or another template"
            )
        tokenizer.add_special_tokens({"extra_special_tokens": lacking}, replace_extra_special_tokens=False)
    _try(tokenizer, policy)


def baked(template: str, variables: dict[str, Any], today: date) -> str:
    """The template with variables that a caller may still override, and with a date instead of the present one."""
    template = template.rpartition(_BAKED)[2]
    template = _DATES.sub(lambda call: repr(today.strftime(call[2])), template)
    if not variables:
        return template
    said = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}"
        for name, value in variables.items()
    )
    return said + _BAKED + template


def control_tokens(template: str) -> list[str]:
    """The control tokens <|...|> that a template writes, in their order: a new tokenizer needs them."""
    return list(dict.fromkeys(_CONTROL.findall(template)))


def prompt_text(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """What the policy continues, control tokens included, for people to read."""
    from trl.data_utils import apply_chat_template

    with _explained(tokenizer, [conversation]):
        return str(apply_chat_template({"prompt": conversation.messages}, tokenizer)["prompt"])


def prompt_ids(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[list[int]]:
    """What the policy continues: each conversation with the generation prompt. Raises DataError for one that the
    template refuses."""
    if not conversations:
        return []
    with _explained(tokenizer, conversations):
        return tokenizer.apply_chat_template(
            [conversation.messages for conversation in conversations],
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            return_dict=False,
        )  # type: ignore[return-value]


def answer_ids(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    answers: Sequence[str],
    ended: Sequence[bool] | None = None,
) -> list[list[int]]:
    """Whole conversations, each with its answer: what a reward model reads. An answer that hasn't `ended` itself (None:
    all have) has no end of turn. Raises DataError for one that the template refuses."""
    rows: list[list[int]] = [[] for _ in answers]
    whole = [True] * len(answers) if ended is None else list(ended)
    for closed in (True, False):
        # the template can't leave open what it doesn't show
        places = [i for i, end in enumerate(whole) if end == closed and (closed or answers[i].strip())]
        if not places:
            continue
        told = [conversations[i].answered(answers[i]) for i in places]
        with _explained(tokenizer, [conversations[i] for i in places]):
            found = tokenizer.apply_chat_template(
                told, continue_final_message=not closed, sanitize_control_tokens=True, return_dict=False
            )
        for i, ids in zip(places, found, strict=True):
            rows[i] = ids
    empty = [i for i, ids in enumerate(rows) if not ids]
    for i, ids in zip(empty, prompt_ids(tokenizer, [conversations[i] for i in empty]), strict=True):
        rows[i] = ids
    return rows


def split_ids(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], answers: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of whole conversations as those before the answer and those from it on, its end of turn included."""
    before, after = [], []
    wholes = answer_ids(tokenizer, conversations, answers)
    for prompt, ids in zip(prompt_ids(tokenizer, conversations), wholes, strict=True):
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(prompt, ids, strict=False))))
        before.append(ids[:shared])
        after.append(ids[shared:])
    return before, after


def training_ids(
    tokenizer: PreTrainedTokenizerBase, told: Sequence[list[Message]], *, last_only: bool = False
) -> list[tuple[list[int], list[int]]]:
    """(ids, mask) of conversations that end with an answer; the mask is 1 where the assistant speaks, of every turn or
    of the last alone, its end of turn included.

    Raises ModelError for a template without marks of what the assistant says, where every turn counts.
    """
    if last_only:
        prompts = [Conversation(messages[:-1]) for messages in told]
        parts = split_ids(tokenizer, prompts, [messages[-1]["content"] for messages in told])
        return [(a + b, [0] * len(a) + [1] * len(b)) for a, b in zip(*parts, strict=True)]
    template, rows = training_template(tokenizer), []
    for messages in told:
        with _explained(tokenizer, [messages]):
            rows.append(_marked(tokenizer, messages, template))
    return rows


def _marked(tokenizer: PreTrainedTokenizerBase, messages: list[Message], template: str) -> tuple[list[int], list[int]]:
    """Transformers gives the mask, or keeps typed control tokens text, but not both: with such tokens the assistant's
    turns and what is between them are encoded apart."""
    from transformers.utils.chat_template_utils import render_jinja_template

    plain = tokenizer.apply_chat_template(messages, chat_template=template, return_assistant_tokens_mask=True)
    ids, mask = list(plain["input_ids"]), list(plain["assistant_masks"])  # type: ignore[index,call-overload]
    safe: Any = tokenizer.apply_chat_template(
        messages, chat_template=template, sanitize_control_tokens=True, return_dict=False
    )
    if ids == safe:
        return ids, mask
    marked, *_ = tokenizer._mark_chat_inputs(template, [messages], None, None, {}, True, False)
    known: dict[str, Any] = dict(tokenizer.special_tokens_map)
    rendered: Any = render_jinja_template(
        conversations=marked, chat_template=template, return_assistant_tokens_mask=True, **known
    )
    texts, spans = rendered
    cuts = [0, *(place for span in spans[0] for place in span), len(texts[0])]
    ids, mask = [], []
    for number, (start, end) in enumerate(pairwise(cuts)):
        part = tokenizer(texts[0][start:end], add_special_tokens=False, sanitize_control_tokens=True)["input_ids"]
        ids += part
        mask += [number % 2] * len(part)
    return ids, mask


def training_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template that marks what the assistant says: the tokenizer's own, or TRL's form of a published one. Raises
    ModelError where there is none."""
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    before, mark, own = str(tokenizer.chat_template).rpartition(_BAKED)
    if has_generation_markers(own):
        return before + mark + own
    bare = copy.copy(tokenizer)
    bare.chat_template = own
    try:
        known = get_training_chat_template(bare)
    except ValueError:
        known = None
    if known is None:
        raise ModelError(
            "the chat template doesn't mark what the assistant says, and TRL knows no form of it that does, so SFT "
            "can't learn the assistant's turns alone: set policy.chat_template to one with {% generation %}, or "
            "policy.train.completion_only to true, for a loss on the last answer"
        )
    return before + mark + known


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token with which the template ends an answer; None where it has none."""
    asked = [Conversation([user("Hi")])]
    opened = answer_ids(tokenizer, asked, ["Hello"], [False])[0]
    after = answer_ids(tokenizer, asked, ["Hello"])[0][len(opened) :]
    return next((i for i in after if i in tokenizer.added_tokens_decoder), None)


def answer_content(text: str) -> str:
    """What an assistant's message says: without the thoughts before it, and the white space around it. Thoughts that
    don't end have no answer."""
    if _THOUGHT in text:
        text = text.rpartition(_THOUGHT)[2]
    elif _THINKING in text:
        text = text.partition(_THINKING)[0]
    return text.strip()


def _own(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template: Any = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _try(tokenizer: PreTrainedTokenizerBase, policy: PolicyConfig) -> None:
    where = "policy.chat_template" if policy.chat_template else f"the chat template of {policy.model}"
    asked = Conversation([user("Hi")])
    try:
        tokenizer.apply_chat_template(asked.messages, add_generation_prompt=True)
    except Exception as error:  # Jinja's, and whatever a template does to Python's objects
        raise ModelError(f"{where} can't be used: {error}: set policy.chat_template to one that can") from error
    check_system(tokenizer, policy.system, "" if policy.chat_template else str(policy.model))


def check_system(tokenizer: PreTrainedTokenizerBase, system: str | None, model: str) -> None:
    """Raises ModelError where the tokenizer's template has no place for the system message. `model`: whose it is."""
    if system is None or tokenizer.chat_template is None:
        return
    try:
        tokenizer.apply_chat_template(Conversation([user("Hi")]).after(system).messages)
    except TemplateError as error:
        where = f"the chat template of {model}" if model else "policy.chat_template"
        raise ModelError(f"{where} refuses a system message ({error}): set policy.system to null") from error


@contextmanager
def _explained(tokenizer: PreTrainedTokenizerBase, told: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    except (TemplateError, TypeError) as error:
        refused = next((one for one in told if _refuses(tokenizer, one)), told[0])
        text = refused if isinstance(refused, str) else Transcript(refused)
        raise DataError(
            f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} refuses the conversation {text!r:.200}: "
            f"{error}. Leave it out of the data, or set another template"
        ) from error


def _refuses(tokenizer: PreTrainedTokenizerBase, told: Any) -> bool:
    try:
        tokenizer.apply_chat_template(told.messages if isinstance(told, Conversation) else told, tokenize=False)
    except (TemplateError, TypeError):
        return True
    return False
