"""The forms in which data sets hold pairs of answers, or answers judged one by one, as texts or as messages: recognised
by their columns."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from rlhf_lib.conversation import Conversation, Message, checked_messages
from rlhf_lib.data.dialogue import split_dialogue
from rlhf_lib.data.joined import missing, sets
from rlhf_lib.data.sources import Funnel, holds_messages, require_columns, text_column
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import PreferencesConfig

if TYPE_CHECKING:
    from datasets import Dataset

PROMPT, CONVERSATIONS = "prompt", "conversations"  # columns of prompts; the latter ShareGPT's
COMPLETION, LABEL = "completion", "label"  # answers that are judged one by one (KTO, Ethayarajh et al. 2024)
CONTEXT, RESPONSES, PREFERENCE = "context", ("response1", "response2"), "overall_preference"  # HelpSteer3's
TIE, NO_PROMPT, NO_ANSWER = "tie", "no prompt", "no single answer"
FIXES = {
    TIE: f"Every {PREFERENCE} is 0",
    NO_PROMPT: f"Answers alone need a column '{PROMPT}' beside them, whole conversations a message of the user's",
    NO_ANSWER: "After the messages that chosen and rejected share, each needs one message, the assistant's",
}
_EXAMPLE = json.dumps({PROMPT: "2 + 2?", "chosen": "4", "rejected": "5"})


class Row(Protocol):
    """Anything that may have a reason not to be used, one of FIXES."""

    @property
    def reason(self) -> str | None: ...


R = TypeVar("R", bound=Row)


class PairRow(NamedTuple):
    """A row as it was read: `reason` says why it is no pair, None where it may be one. Prompts of messages are
    conversations, their answers stripped; other prompts and answers are the set's texts."""

    prompt: str
    rejected_prompt: str
    chosen: str
    rejected: str
    margin: float | None
    reason: str | None = None


class AnswerRow(NamedTuple):
    """An answer judged by itself, as `PairRow`; a text that answers nothing has no prompt."""

    prompt: str | None
    answer: str
    reason: str | None = None


def exchange(prompt: str, answer: str, *, chat: bool, system: str | None) -> tuple[str, str]:
    """Prompt and answer for chat models: a conversation, with the system message where it has none, and a message's
    content; for others texts that read as one, with the white space that joins them in front of the answer."""
    if chat:
        return Conversation.of(prompt, system), answer.strip()
    prompt, answer = str(prompt), answer.rstrip()
    apart = answer and not answer[0].isspace() and not prompt[-1:].isspace()
    return prompt, f" {answer}" if apart else answer


def usable(rows: list[R], funnel: Funnel) -> list[R]:
    """The rows without a reason against them; the others are counted under it. Raises DataError if none is left."""
    for reason, fix in FIXES.items():
        if any(row.reason == reason for row in rows):  # most sets know none of them
            rows = funnel.keep(reason, rows, (row.reason != reason for row in rows), fix)
    return rows


def read_pairs(dataset: Dataset, settings: PreferencesConfig, where: str) -> list[PairRow]:
    """One item for each row, in the rows' order; joined sets have each their own form.

    Raises DataError for columns of no known form, and for a row that isn't of its set's form, naming both.
    """
    return [row for name, rows in sets(dataset, where) for row in _read_set(rows, settings, name)]


def read_answers(dataset: Dataset, column: str, where: str, key: str) -> list[AnswerRow]:
    """One item for each row, in the rows' order: the column's texts, or the answers at the end of its conversations; in
    sets without it, the completions and their prompts.

    Args:
        key: the recipe's key that names the column, for the messages.

    Raises DataError as `read_pairs` does.
    """
    return [row for name, rows in sets(dataset, where) for row in _read_answers(rows, column, name, key)]


def _read_set(rows: Dataset, settings: PreferencesConfig, where: str) -> Iterator[PairRow]:
    columns = set(rows.column_names)
    if settings.chosen not in columns and {CONTEXT, *RESPONSES, PREFERENCE} <= columns:
        return _compared(rows, settings, where)
    if settings.chosen not in columns and {COMPLETION, LABEL} <= columns:
        raise DataError(
            f"{where}: '{COMPLETION}' and '{LABEL}' are answers judged one by one, no pairs. Train a classifier on "
            "them: data.labelled instead of data.preferences, and reward.kind classifier with reward.label desirable"
        )
    for key, column in (("chosen", settings.chosen), ("rejected", settings.rejected)):
        if reason := missing(rows, column, where):
            raise DataError(f"{reason}. Set data.preferences.{key}, or write rows such as {_EXAMPLE}")
    kinds = {column: holds_messages(rows, column) for column in (settings.chosen, settings.rejected)}
    if all(kinds.values()):
        return _of_messages(rows, settings, where)
    if any(kinds.values()):
        one, other = sorted(kinds, key=kinds.__getitem__, reverse=True)
        raise DataError(
            f"{where}: column '{one}' holds chat messages, but column '{other}' doesn't: make both texts, or both "
            "lists of messages {role, content}"
        )
    return _of_texts(rows, settings, where)


def prompt_of(value: Any, place: str) -> str:
    """A row's prompt: a text as it is, messages as a conversation. Raises DataError naming the place."""
    return value if isinstance(value, str) else Conversation(checked_messages(value, place))


def prompt_column(rows: Dataset) -> str | None:
    """The column with the prompts of answers alone."""
    if PROMPT in rows.column_names:
        return PROMPT
    return CONVERSATIONS if CONVERSATIONS in rows.column_names and holds_messages(rows, CONVERSATIONS) else None


def prompts(rows: Dataset, column: str, where: str) -> Sequence[str]:
    """The column's prompts: texts, null as empty, or conversations. Raises DataError."""
    if not holds_messages(rows, column):
        return text_column(rows, column, where, None)
    values = enumerate(rows.with_format(None)[column])
    return [prompt_of(value, f"{where}, row {row}, column '{column}'") for row, value in values]


def whole(messages: Sequence[Message]) -> bool:
    """Whether the messages are a conversation from its beginning, not an answer alone."""
    return bool(messages) and messages[0]["role"] != "assistant"


def answer_of(messages: Sequence[Message]) -> str | None:
    """The one message of the assistant's, stripped; None where it is another's, or there are several."""
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        return None
    return messages[0]["content"].strip()


def _of_texts(rows: Dataset, settings: PreferencesConfig, where: str) -> Iterator[PairRow]:
    """Answers beside a prompt, which they may repeat, or whole dialogues."""
    names = (settings.chosen, settings.rejected)
    texts = (
        text_column(rows, settings.chosen, where, "data.preferences.chosen"),
        text_column(rows, settings.rejected, where, "data.preferences.rejected"),
    )
    margins = _margins(rows, settings.margin, where)
    asked = column and prompts(rows, column, where) if (column := prompt_column(rows)) else None
    for row, (answers, margin) in enumerate(zip(zip(*texts, strict=True), margins, strict=True)):
        if asked is not None:
            prompt = asked[row]
            chosen, rejected = (text.removeprefix(prompt) for text in answers)
            yield PairRow(prompt, prompt, chosen, rejected, margin)
        else:
            (prompt, chosen), (other, rejected) = (
                _split(text, f"{where}, row {row}, column '{name}'") for name, text in zip(names, answers, strict=True)
            )
            yield PairRow(prompt, other, chosen, rejected, margin)


def _split(text: str, place: str) -> tuple[str, str]:
    try:
        return split_dialogue(text)
    except DataError as error:
        raise DataError(f"{place} {error}. Answers alone need a column 'prompt' beside them") from None


def _of_messages(rows: Dataset, settings: PreferencesConfig, where: str) -> Iterator[PairRow]:
    """Answers beside a prompt, or whole conversations, with or without a column that repeats their prompt."""
    plain, column = rows.with_format(None), prompt_column(rows)
    asked = plain[column] if column else [None] * len(rows)
    names = (settings.chosen, settings.rejected)
    margins = _margins(rows, settings.margin, where)
    for row, (prompt, *answers, margin) in enumerate(
        zip(asked, *(plain[name] for name in names), margins, strict=True)
    ):
        place = f"{where}, row {row}, column"
        chosen, rejected = (
            checked_messages(value, f"{place} '{name}'") if value else []
            for name, value in zip(names, answers, strict=True)
        )
        yield _pair(prompt_of(prompt, f"{place} '{column}'") if prompt else None, chosen, rejected, margin)


def _pair(prompt: str | None, chosen: list[Message], rejected: list[Message], margin: float | None) -> PairRow:
    """The pair of two lists of messages: answers to the prompt, or conversations, whose prompt is what they share."""
    other = prompt
    start = prompt.messages if isinstance(prompt, Conversation) else []
    if start and chosen[: len(start)] == start == rejected[: len(start)]:
        chosen, rejected = chosen[len(start) :], rejected[len(start) :]
    elif not start and whole(chosen) and whole(rejected):
        shared = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False)))
        shared = min(shared, len(chosen) - 1, len(rejected) - 1)  # the last message is the answer, the same one too
        if _asks(chosen[:shared]):
            prompt = other = Conversation(chosen[:shared])
            chosen, rejected = chosen[shared:], rejected[shared:]
        else:  # two prompts
            prompt, other = Conversation(chosen[:-1]), Conversation(rejected[:-1])
            chosen, rejected = chosen[-1:], rejected[-1:]
    better, worse = answer_of(chosen), answer_of(rejected)
    return PairRow(prompt or "", other or "", better or "", worse or "", margin, _reason(prompt, better, worse))


def _reason(prompt: str | None, *answers: str | None) -> str | None:
    if None in answers:
        return NO_ANSWER
    asked = prompt is not None and (not isinstance(prompt, Conversation) or _asks(prompt.messages))
    return None if asked else NO_PROMPT


def _asks(messages: Sequence[Message]) -> bool:
    return any(message["role"] == "user" for message in messages)


def _compared(rows: Dataset, settings: PreferencesConfig, where: str) -> Iterator[PairRow]:
    """HelpSteer3's (Wang et al. 2025): two responses, and by how much the second is better, negative where the first
    is; as the margin, that without its sign."""
    asked = prompts(rows, CONTEXT, where)
    one, two = (text_column(rows, column, where, None) for column in RESPONSES)
    preferences = numbers(rows, PREFERENCE, where, "Rows without a preference are no pairs: leave them out")
    own = settings.margin == PREFERENCE
    margins = [abs(by) for by in preferences] if own else _margins(rows, settings.margin, where)
    for prompt, first, second, by, margin in zip(asked, one, two, preferences, margins, strict=True):
        chosen, rejected = (first, second) if by < 0 else (second, first)
        yield PairRow(prompt, prompt, chosen, rejected, margin, None if by else TIE)


def _read_answers(rows: Dataset, column: str, where: str, key: str) -> Iterator[AnswerRow]:
    if column not in rows.column_names and COMPLETION in rows.column_names:
        column = COMPLETION
    asked = prompt_column(rows) if column == COMPLETION else None
    given = prompts(rows, asked, where) if asked else [None] * len(rows)
    if not holds_messages(rows, column):
        for prompt, text in zip(given, text_column(rows, column, where, key), strict=True):
            yield AnswerRow(prompt, text if prompt is None else text.removeprefix(prompt))
        return
    for row, (prompt, value) in enumerate(zip(given, rows.with_format(None)[column], strict=True)):
        messages = checked_messages(value, f"{where}, row {row}, column '{column}'") if value else []
        start = prompt.messages if isinstance(prompt, Conversation) else []
        if start and messages[: len(start)] == start:
            messages = messages[len(start) :]
        elif not start and whole(messages):
            prompt, messages = Conversation(messages[:-1]), messages[-1:]
        answer = answer_of(messages)
        yield AnswerRow(prompt, answer or "", _reason(prompt, answer))


def numbers(rows: Dataset, column: str, where: str, fix: str, what: str = "column") -> list[float]:
    """The column's numbers. Raises DataError with the fix for a row that holds none."""
    values = rows.with_format(None)[column]
    for row, value in enumerate(values):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{where}, row {row}: {what} '{column}' holds {value!r}, not a number. {fix}")
    return [float(value) for value in values]


def _margins(rows: Dataset, column: str | None, where: str) -> Sequence[float | None]:
    if column is None:
        return [None] * len(rows)
    require_columns(rows, [column], where, "data.preferences.margin")
    fix = "Set data.preferences.margin to another column, or to null"
    return numbers(rows, column, where, fix, "margin column")
