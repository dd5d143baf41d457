"""Texts of people and models as HTML: Markdown, made safe.

The Markdown parser passes no HTML on (it shows tags as text), and nh3 keeps a short list of elements and attributes:
no script, style, image, form or handler of an answer reaches the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

from rlhf_lib.conversation import HUMAN, SYSTEM, Conversation, Message, dialogue_messages, user

_TAGS = {"p", "br", "hr", "em", "strong", "s", "del", "code", "pre", "blockquote", "a", "ol", "ul", "li"}
_TAGS |= {"h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"}
_LINKS = {"http", "https", "mailto"}
_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    # images are left as text: one from elsewhere would tell its server who reads what
    return MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable("image")


def markdown(text: str) -> Markup:
    """The text's Markdown as HTML without anything that could run or load."""
    rendered = _parser().render(text.strip())
    clean = nh3.clean(
        rendered,
        tags=_TAGS,
        attributes={"a": {"href", "title"}, "ol": {"start"}},
        url_schemes=_LINKS,
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
    return Markup(clean)


def turns(prompt: str, messages: Sequence[Message] | None = None) -> list[tuple[str, str, Markup]]:
    """(role, speaker, HTML) of a prompt's messages, for bubbles: of a Conversation, of `messages`, of a dialogue in
    hh-rlhf's format, or else one message of the user's."""
    if not messages and isinstance(prompt, Conversation):
        messages = prompt.messages
    if not messages:
        messages = dialogue_messages(prompt) if prompt.startswith((HUMAN, SYSTEM)) else [user(prompt)]
    return [
        (
            message["role"] if message["role"] in _SPEAKERS else "system",
            _SPEAKERS.get(message["role"], message["role"].capitalize()),
            markdown(message["content"]),
        )
        for message in messages
    ]
