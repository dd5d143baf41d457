"""Markdown of prompts and answers is shown, and nothing in it runs or loads."""

import pytest

from rlhf_lib.conversation import Conversation, user
from tasks.pages.text import markdown, turns


def test_markdown_is_shown():
    html = markdown(
        "**bold** and `code`\n\n1. one\n2. two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n[here](https://example.org)"
    )
    for part in ("<strong>bold</strong>", "<code>code</code>", "<li>two</li>", "<td>2</td>"):
        assert part in html
    assert '<a href="https://example.org" target="_blank" rel="noopener noreferrer nofollow">here</a>' in html
    assert markdown("one\ntwo") == "<p>one<br>\ntwo</p>\n"


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt&#58;alert(1))",
        "<javascript:alert(1)>",
        "![x](https://example.org/pixel.png)",
        "<a href='data:text/html,x'>x</a>",
        "<style>body{display:none}</style>",
        "```html\n<script>alert(1)</script>\n```",
        '<div onmouseover="alert(1)">x</div>',
        '[x](https://example.org "\\" onclick=alert(1)")',
    ],
)
def test_nothing_runs_or_loads(attack):
    html = markdown(attack).lower()
    for part in (
        "<script",
        "<img",
        "<style",
        "<div",
        'href="javascript',
        "href='javascript",
        'href="data',
        '" onclick=',
    ):
        assert part not in html


def test_template_braces_are_text():
    assert markdown("{{ 7 * 7 }} {% raw %}") == "<p>{{ 7 * 7 }} {% raw %}</p>\n"


def test_a_prompt_is_shown_as_the_conversation_that_it_is():
    dialogue = "\n\nSystem: Be kind.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: **Why?**\n\nAssistant:"
    assert [(role, html.strip()) for role, _, html in turns(dialogue)] == [
        ("system", "<p>Be kind.</p>"),
        ("user", "<p>Hi</p>"),
        ("assistant", "<p>Hello</p>"),
        ("user", "<p><strong>Why?</strong></p>"),
    ]
    assert [role for role, *_ in turns("Name a bird.")] == ["user"]
    assert [role for role, *_ in turns(Conversation([user("Hi")]))] == ["user"]
    assert turns("text", [{"role": "tool", "content": "42"}])[0][:2] == ("system", "Tool")
