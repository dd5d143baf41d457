"""The Jinja environment of all pages: every value is escaped, and unknown names are errors."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from tasks.pages.text import markdown, turns

_HERE = Path(__file__).parent


def page_templates() -> Jinja2Templates:
    """Templates of `tasks/pages/templates`, with the filter `markdown` and the function `turns`."""
    environment = Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined)
    environment.filters["markdown"] = markdown
    environment.globals |= {"turns": turns, "account": None, "csrf": None, "wide": False}
    return Jinja2Templates(env=environment)


def static_files() -> StaticFiles:
    """What `/static` serves: style sheets, scripts, the icon."""
    return StaticFiles(directory=_HERE / "static")
