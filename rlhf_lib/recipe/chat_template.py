"""Chat templates that a recipe names: read at once, so that the recipe, wherever it is kept, says all."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "chat_templates"


def read_template(given: str) -> str:
    """The template of a name that comes with rlhf, of a Jinja file, or itself. Raises ValueError."""
    if "{%" in given or "{{" in given:
        return given
    shipped = {path.stem: path for path in SHIPPED.glob("*.jinja")}
    try:
        return (shipped.get(given) or Path(given).expanduser()).read_text()
    except OSError as error:
        raise ValueError(
            f"{given} can't be read ({error.strerror}): give a Jinja file, or the name of a template that comes with "
            f"rlhf ({', '.join(sorted(shipped))})"
        ) from None
