"""What the reports share: a page that stands alone (HTML, plots inside), and how numbers and model text are shown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from rlhf_lib.conversation import Conversation
from rlhf_lib.statistics import Interval, no_interval

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
QUERY_CHARS = 400  # a long dialogue shows its end, which is what the responses answer
LEAST_CHARS = 40  # of a turn: less tells nothing


def page(template: str, pictures: Mapping[str, Path], **shown: Any) -> str:
    """One file, no scripts, nothing fetched: a template of templates/ that extends page.html, everything escaped.
    `pictures` are PNG files by their captions."""
    images = {caption: base64.b64encode(picture.read_bytes()).decode() for caption, picture in pictures.items()}
    return _HTML.get_template(template).render(images=images, **shown)


def markdown(template: str, **shown: Any) -> str:
    """A template of templates/, for a terminal or a tracker's artifact page; it puts model text through `cell`."""
    return _MARKDOWN.get_template(template).render(**shown)


def number(value: float | None, signed: bool = False) -> str:
    """Three digits that matter, no exponent for ordinary sizes; n/a for None."""
    if value is None:
        return "n/a"
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:#.3g}".rstrip(".")
    return f"+{text}" if signed and value > 0 else text


def percent(share: float | None) -> str:
    """63%; n/a for None."""
    return "n/a" if share is None else f"{share:.0%}"


def interval(ci95: Interval | None, prompts: int, signed: bool = False) -> str:
    """`95% interval 0.1 to 0.2`, or why there is none."""
    if ci95 is None:
        return no_interval(prompts)
    return f"95% interval {number(ci95[0], signed)} to {number(ci95[1], signed)}"


def markdown_cell(text: str) -> str:
    """Text as a Markdown table's cell shows it literally: HTML and Markdown marks escaped, line breaks kept.

    Control characters become U+FFFD: an untrained model writes them, and PostgreSQL stores no NUL.
    """
    escaped = html.escape(CONTROL.sub("\ufffd", text.strip()), quote=False)
    for mark in "\\`*_{}[]#|~$":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped.replace("\r", "").replace("\n", "<br>") or "(empty)"


def shortened(query: str) -> str:
    """A long query's end; a conversation whole, since `turns` shortens it."""
    return query if len(query) <= QUERY_CHARS or isinstance(query, Conversation) else "... " + query[-QUERY_CHARS:]


def turns(query: str) -> list[tuple[str, str]]:
    """(role, text) of each turn of a conversation, of a long one those at its end; ("", query) of another query."""
    if not isinstance(query, Conversation):
        return [("", query)]
    shown: list[tuple[str, str]] = []
    room = QUERY_CHARS
    for message in reversed(query.messages):
        role, text = message["role"].capitalize(), message["content"].strip()
        if len(text) > room:
            shown.append((role, f"... {text[-room:]}") if room >= LEAST_CHARS else ("", "..."))
            break
        shown.append((role, text))
        room -= len(text)
    return shown[::-1]


def markdown_query(query: str) -> str:
    """A query in a Markdown table's cell; of a conversation a line each turn, with its role in bold."""
    told = (f"**{role}:** {markdown_cell(text)}" if role else markdown_cell(text) for role, text in turns(query))
    return "<br>".join(told)


_LOADER = PackageLoader("rlhf_lib.evaluation", "templates")
_HTML = Environment(loader=_LOADER, autoescape=True, trim_blocks=True, lstrip_blocks=True)
_MARKDOWN = Environment(loader=_LOADER, trim_blocks=True, lstrip_blocks=True)
for _environment in (_HTML, _MARKDOWN):
    _environment.filters |= {"number": number, "percent": percent, "cell": markdown_cell, "interval": interval}
    _environment.filters |= {"turns": turns, "query": markdown_query}
