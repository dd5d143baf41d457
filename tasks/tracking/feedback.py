"""Human feedback in MLflow: agreement as metrics, table and figure, and every rejected row with its reason."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import mlflow

from rlhf_lib.recipe import RankingsConfig, Recipe

if TYPE_CHECKING:
    from rlhf_lib.data.rankings.consensus import Feedback

FILES = ("tasks", "rankings", "feedback")


def ranking_fingerprints(recipe: Recipe) -> dict[str, str]:
    """sha256 of the files' content, by role; empty where the recipe's pairs come from elsewhere. Raises DataError."""
    from rlhf_lib.data.rankings.files import content

    settings = recipe.data.preferences.rankings if recipe.data.preferences else None
    if settings is None:
        return {}
    return {f"preferences/{kind}": content(files, kind) for kind in FILES if (files := getattr(settings, kind))}


def show_feedback(found: Feedback, settings: RankingsConfig) -> dict[str, float]:
    """Log report, tables and figure to the active run; returns the metrics, figures that don't apply left out."""
    from rlhf_lib.data.rankings.report import agreement_bars, markdown, rejected_table

    mlflow.log_text(markdown(found), "rankings/report.md")
    if found.rejected:
        mlflow.log_table(rejected_table(found.rejected), "rankings/rejected.json")
    metrics: dict[str, float | None] = {"rankings/rejected": float(len(found.rejected)), "agreement/alpha": found.alpha}
    if found.annotators:
        metrics["agreement/flagged"] = float(len(found.flagged))
        rows = [
            {"annotator": name, **figures, "flagged": name in found.flagged}
            for name, figures in found.annotators.items()
        ]
        mlflow.log_table({key: [row[key] for row in rows] for key in rows[0]}, "rankings/agreement.json")
        names = list(found.annotators)
        mlflow.log_dict({"annotators": names, "equal_judgements": found.matrix}, "rankings/matrix.json")
        mlflow.log_figure(agreement_bars(found, settings.flag_below), "rankings/agreement.png")
    for name, figures in found.annotators.items():
        where = f"agreement/annotator/{re.sub(r'[^A-Za-z0-9_. -]', '_', name)}"
        metrics |= {f"{where}/{key}": figures[key] for key in ("alpha", "agreement", "pairs", "ties")}
    if found.criterion is not None:
        mlflow.set_tag("criterion", found.criterion)
    return {name: figure for name, figure in metrics.items() if figure is not None}
