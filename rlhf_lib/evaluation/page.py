"""What the reports share: a page that stands alone (HTML, plots inside), and how numbers and model text are shown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
QUERY_CHARS = 400  # a long dialogue shows its end, which is what the responses answer


def page(template: str, pictures: Mapping[str, Path], **shown: Any) -> str:
    """One file, no scripts, nothing fetched; `template` extends page.html, `pictures` are PNG files by their captions.
    All that it shows is escaped."""
    images = {caption: base64.b64encode(picture.read_bytes()).decode() for caption, picture in pictures.items()}
    return _HTML.from_string(template).render(images=images, **shown)


def markdown(template: str, **shown: Any) -> str:
    """For a terminal, a tracker's artifact page or a model card; text in it goes through the filter `cell`."""
    return _MARKDOWN.from_string(template).render(**shown)


def number(value: float | None, signed: bool = False) -> str:
    """Three digits that matter, no exponent for ordinary sizes; n/a for None."""
    if value is None:
        return "n/a"
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:#.3g}".rstrip(".")
    return f"+{text}" if signed and value > 0 else text


def markdown_cell(text: str) -> str:
    """Text as a Markdown table's cell shows it literally: HTML and Markdown marks escaped, line breaks kept.

    Control characters become U+FFFD: an untrained model writes them, and PostgreSQL stores no NUL.
    """
    escaped = html.escape(CONTROL.sub("\ufffd", text.strip()), quote=False)
    for mark in "\\`*_{}[]#|~$":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped.replace("\r", "").replace("\n", "<br>") or "(empty)"


def shortened(query: str) -> str:
    """A long query's end."""
    return query if len(query) <= QUERY_CHARS else "... " + query[-QUERY_CHARS:]


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  :root { --ink: #2b303b; --quiet: #687082; --line: #e3e6ec; --before: #8a94a6; --after: #d9622b; --good: #1d7f4e;
    --bad: #b3261e; }
  * { box-sizing: border-box; }
  body { font: 15px/1.5 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; color: var(--ink);
    background: #f6f7f9; margin: 0; }
  main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 64px; }
  h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; overflow-wrap: anywhere; }
  h2 { font-size: 18px; margin: 40px 0 12px; }
  .lead { color: var(--quiet); margin: 0 0 24px; }
  .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; }
  .card, figure, table { background: #fff; border: 1px solid var(--line); border-radius: 10px; }
  .card { padding: 14px 16px; }
  .card b { display: block; font-size: 27px; line-height: 1.2; font-variant-numeric: tabular-nums; }
  .card span { color: var(--quiet); font-size: 13px; }
  .card .name { display: block; font-size: 13px; color: var(--ink); }
  .good { color: var(--good); } .bad { color: var(--bad); }
  .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(310px, 1fr)); gap: 12px; margin-top: 12px; }
  .plots.pairs { grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); }
  figure { margin: 0; padding: 8px; } figure img { width: 100%; display: block; }
  table { border-collapse: separate; border-spacing: 0; width: 100%; overflow: hidden; }
  th { text-align: left; font-size: 12px; color: var(--quiet); font-weight: 600; background: #fafbfc; }
  th, td { padding: 9px 14px; border-bottom: 1px solid var(--line); vertical-align: top; }
  tr:last-child td { border-bottom: 0; }
  .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
  .samples { table-layout: fixed; } .samples td { font-size: 14px; }
  .samples .text { white-space: pre-wrap; overflow-wrap: anywhere; }
  .query { color: var(--quiet); }
  .score { display: block; font-size: 12px; font-weight: 600; font-variant-numeric: tabular-nums; margin-bottom: 2px; }
  .before .score { color: var(--before); } .after .score { color: var(--after); }
  .best .score { color: var(--after); } .wide { overflow-x: auto; }
  .mark { color: var(--quiet); font-size: 12px; font-style: italic; }
  .words { display: flex; flex-wrap: wrap; gap: 8px; margin: 0; }
  .words span { background: #fff; border: 1px solid var(--line); border-radius: 14px; padding: 3px 12px; }
  .words small { color: var(--quiet); margin-left: 4px; font-variant-numeric: tabular-nums; }
  .words .gained { border-color: var(--after); } .words .lost { border-color: var(--before); border-style: dashed; }
  ul { padding-left: 20px; color: var(--quiet); font-size: 14px; } li { margin-bottom: 4px; }
  @media print { body { background: #fff; } tr, figure { break-inside: avoid; } }
</style>
</head>
<body>
<main>
{% block body %}{% endblock %}
</main>
</body>
</html>
"""

_PARTS = """\
{% macro response(text, score, cut, side) %}
<td class="{{ side }}"><span class="score">{{ score|number }}</span><span class="text">{{ text.strip() }}</span>
{% if not text.strip() %}<span class="mark">(empty)</span>{% endif %}
{% if cut %}<span class="mark" title="reached the length limit">[cut]</span>{% endif %}</td>
{% endmacro %}
{% macro plots(images) %}
<section class="plots{{ ' pairs' if images|length == 4 }}">
{% for caption, image in images.items() %}
  <figure><img alt="{{ caption }}" src="data:image/png;base64,{{ image }}"></figure>
{% endfor %}
</section>
{% endmacro %}
{% macro notes(sentences) %}
<h2>How it was measured</h2>
<ul>
{% for note in sentences %}
  <li>{{ note }}</li>
{% endfor %}
</ul>
{% endmacro %}
"""

_LOADER = DictLoader({"page.html": _PAGE, "parts.html": _PARTS})
_HTML = Environment(loader=_LOADER, autoescape=True, trim_blocks=True, lstrip_blocks=True)
_MARKDOWN = Environment(trim_blocks=True, lstrip_blocks=True)
for _environment in (_HTML, _MARKDOWN):
    _environment.filters |= {"number": number, "cell": markdown_cell}
