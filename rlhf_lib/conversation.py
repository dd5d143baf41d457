"""Conversations: lists of messages, {role, content}, which chat models are trained on.

As a text, a conversation is a dialogue in hh-rlhf's format (rlhf_lib/data/dialogue.py), which people read and models
without a chat template are given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from rlhf_lib.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Message = dict[str, str]

SYSTEM, HUMAN, ASSISTANT = "\n\nSystem:", "\n\nHuman:", "\n\nAssistant:"
_MARKS = {"system": SYSTEM, "user": HUMAN, "assistant": ASSISTANT}
_ROLES = {mark: role for role, mark in _MARKS.items()}
_SHAREGPT = {"human": "user", "gpt": "assistant"}
_TURNS = re.compile(f"({SYSTEM}|{HUMAN}|{ASSISTANT})")
MESSAGES = "messages"  # the column in which a data set on disk keeps what its texts don't tell


class Transcript(str):
    """Messages that read as the dialogue that they are. It is a str, whose `messages` are kept."""

    messages: list[Message]

    def __new__(cls, messages: Iterable[Mapping[str, str]]) -> Self:
        said = [{"role": message["role"], "content": message["content"]} for message in messages]
        told = super().__new__(cls, cls.text(said))
        told.messages = said
        return told

    def __getnewargs__(self) -> tuple[list[Message]]:  # type: ignore[override]  # what copies and pickles are made from
        return (self.messages,)

    @classmethod
    def text(cls, messages: Sequence[Mapping[str, str]]) -> str:
        """The dialogue."""
        marks = (_MARKS.get(message["role"]) or f"\n\n{message['role'].capitalize()}:" for message in messages)
        return "".join(f"{mark} {message['content']}" for mark, message in zip(marks, messages, strict=True))


class Conversation(Transcript):
    """A prompt as messages; the assistant speaks next.

    It is a str, the dialogue "\\n\\nHuman: ...\\n\\nAssistant:", so that whatever counts, compares or shows prompts
    does so with conversations too. `messages` is what a chat template, or a reward function, is given.
    """

    @classmethod
    def text(cls, messages: Sequence[Mapping[str, str]]) -> str:
        """The dialogue, up to the answer that is due."""
        return super().text(messages) + ASSISTANT

    @classmethod
    def of(cls, text: str, system: str | None = None) -> Conversation:
        """A text as a conversation: a dialogue's turns without an answer to the last, or one turn of the user's.
        `system`: what a conversation without a system message begins with."""
        if isinstance(text, Conversation):
            return text.after(system)
        messages = dialogue_messages(text) if text.startswith((HUMAN, SYSTEM)) else [user(text)]
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        return cls(messages).after(system)

    def after(self, system: str | None) -> Conversation:
        """The conversation, with this system message where it has none of its own."""
        if system is None or (self.messages and self.messages[0]["role"] == "system"):
            return self
        return Conversation([{"role": "system", "content": system}, *self.messages])

    def answered(self, answer: str) -> list[Message]:
        """The messages, and the assistant's answer as the last."""
        return [*self.messages, {"role": "assistant", "content": answer.strip()}]


def user(content: str) -> Message:
    """A message of the user's."""
    return {"role": "user", "content": content}


def dialogue_messages(text: str) -> list[Message]:
    """A dialogue's turns as messages; its last, empty "\\n\\nAssistant:" is none."""
    _, *parts = _TURNS.split(text)
    turns = [
        {"role": _ROLES[mark], "content": said.strip()} for mark, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns[:-1] if turns and turns[-1] == {"role": "assistant", "content": ""} else turns


def in_full(prompt: str, answer: str) -> str:
    """Prompt and answer as one text."""
    return f"{prompt} {answer.strip()}" if isinstance(prompt, Conversation) else prompt + answer


def is_messages(value: Any) -> bool:
    """Whether it is a list of messages, {role, content}."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(item, Mapping) and {"role", "content"} <= item.keys() for item in value)
    )


def checked_messages(value: Any, where: str) -> list[Message]:
    """The messages of a list, or a single one; other keys left out, ShareGPT's {from, value} renamed. Raises DataError,
    naming `where`, for what is none."""
    listed = [_renamed(item) for item in value] if isinstance(value, list | tuple) else [_renamed(value)]
    if not is_messages(listed):
        raise DataError(f"{where} is {value!r:.80}, no list of messages {{role, content}}")
    for message in listed:
        if not isinstance(message["role"], str) or not isinstance(message["content"], str):
            held = f"role {message['role']!r:.40} and content {message['content']!r:.40}"
            raise DataError(f"{where}: a message has {held}: both must be text")
    return [{"role": message["role"], "content": message["content"]} for message in listed]


def _renamed(item: Any) -> Any:
    if not isinstance(item, Mapping) or "role" in item or not {"from", "value"} <= item.keys():
        return item
    speaker = item["from"]
    return {"role": _SHAREGPT.get(speaker, speaker) if isinstance(speaker, str) else speaker, "content": item["value"]}


def columns_of(prompts: Sequence[str], column: str) -> dict[str, list[Any]]:
    """Columns of a data set that hold the prompts: as text, and the messages of conversations. `prompts_of` is the way
    back."""
    columns: dict[str, list[Any]] = {column: [str(prompt) for prompt in prompts]}
    if any(isinstance(prompt, Conversation) for prompt in prompts):
        columns[MESSAGES] = [prompt.messages if isinstance(prompt, Conversation) else [] for prompt in prompts]
    return columns


def prompts_of(rows: Dataset, column: str) -> list[str]:
    """The column's texts; conversations where the rows have their messages."""
    plain = rows.with_format(None)
    texts = list(plain[column])
    if MESSAGES not in rows.column_names:
        return texts
    return [Conversation(messages) if messages else text for text, messages in zip(texts, plain[MESSAGES], strict=True)]
