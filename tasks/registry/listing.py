"""What the registry holds, in rows: versions with their figures, aliases, date, and why they were promoted or not."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import mlflow

from rlhf_lib.errors import ModelError
from tasks.registry.provenance import versions

HEADER = ("VERSION", "ALIASES", "DATE (UTC)", "REWARD GAINED", "PERPLEXITY", "KL", "DISTINCT-2", "WHY")


def registered(name: str | None = None) -> list[str]:
    """Names of the registered models, or the one asked for. Raises ModelError for an unknown one."""
    names = [model.name for model in mlflow.MlflowClient().search_registered_models()]
    if name is None:
        return names
    if name not in names:
        raise ModelError(f"no model {name} is registered: {', '.join(names) or 'none is yet, run a recipe first'}")
    return [name]


def version_rows(name: str) -> list[tuple[str, ...]]:
    """One row a version under HEADER, the newest first."""
    aliases = mlflow.MlflowClient().get_registered_model(name).aliases  # a search leaves those of versions out
    rows: list[tuple[str, ...]] = []
    for version in versions(name):
        tags = version.tags
        date = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        rows.append(
            (
                str(version.version),
                ", ".join(sorted(a for a, number in aliases.items() if str(number) == str(version.version))),
                f"{date:%Y-%m-%d %H:%M}",
                _gain(tags),
                _change(tags, "perplexity"),
                tags.get("kl", "-"),
                _change(tags, "diversity/distinct_2"),
                tags.get("audit") or tags.get("reason", "-"),
            )
        )
    return rows


def _gain(tags: Mapping[str, str]) -> str:
    figures = [tags.get(f"reward/{key}") for key in ("delta", "ci95_low", "ci95_high")]
    if None in figures:
        return "-"
    delta, low, high = (float(figure) for figure in figures if figure is not None)
    return f"{delta:+.3g} [{low:+.3g}, {high:+.3g}]"


def _change(tags: Mapping[str, str], name: str) -> str:
    """Reference -> policy, by either spelling of the tags: perplexity/policy, diversity/distinct_2_policy."""
    for separator in ("/", "_"):
        before, after = (tags.get(f"{name}{separator}{side}") for side in ("reference", "policy"))
        if before is not None and after is not None:
            return f"{float(before):.3g} -> {float(after):.3g}"
    return "-"
