"""Where people look for results: reports and human feedback, in the run's folder, MLflow and Prefect."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from prefect.artifacts import create_markdown_artifact

from rlhf_lib.recipe import RankingsConfig, Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rlhf_lib.data.rankings.consensus import Feedback
    from rlhf_lib.evaluation.report import BeforeAfterReport, ComparisonReport


def publish(
    written: BeforeAfterReport | ComparisonReport,
    figures: Mapping[str, Figure],
    folder: Path,
    *,
    key: str,
    description: str,
) -> Path:
    """Draw the plots and write the page with all of them in it. Log both and the report's Markdown to the active MLflow
    run, and the Markdown as Prefect's artifact `key`. Returns the path of the page, report.html in `folder`."""
    from rlhf_lib.drawing import save

    page, plots, markdown = folder / "report.html", folder / "plots", written.markdown()
    page.write_text(written.html(save(figures, plots)), encoding="utf-8")
    mlflow.log_artifacts(str(plots), plots.name)
    mlflow.log_artifact(str(page))
    mlflow.log_text(markdown, "report.md")
    create_markdown_artifact(markdown, key=key, description=description)
    return page


FILES = ("tasks", "rankings", "feedback")


def ranking_fingerprints(recipe: Recipe) -> dict[str, str]:
    """sha256 of the ranking files' content by role; empty if the pairs come from elsewhere. Raises DataError."""
    from rlhf_lib.data.rankings.files import content

    settings = recipe.data.preferences.rankings if recipe.data.preferences else None
    if settings is None:
        return {}
    return {f"preferences/{kind}": content(files, kind) for kind in FILES if (files := getattr(settings, kind))}


def show_feedback(found: Feedback, settings: RankingsConfig) -> dict[str, float]:
    """Log report, tables and plot to the active run, and return the metrics that apply."""
    from rlhf_lib.data.rankings.report import agreement_bars, markdown, rejected_table

    mlflow.log_text(markdown(found), "rankings/report.md")
    if found.rejected:
        mlflow.log_table(rejected_table(found.rejected), "rankings/rejected.json")
    metrics: dict[str, float | None] = {"rankings/rejected": float(len(found.rejected)), "agreement/alpha": found.alpha}
    if found.annotators:
        metrics["agreement/flagged"] = float(len(found.flagged))
        rows = [
            {"annotator": name, **measured, "flagged": name in found.flagged}
            for name, measured in found.annotators.items()
        ]
        mlflow.log_table({key: [row[key] for row in rows] for key in rows[0]}, "rankings/agreement.json")
        names = list(found.annotators)
        mlflow.log_dict({"annotators": names, "equal_judgements": found.matrix}, "rankings/matrix.json")
        mlflow.log_figure(agreement_bars(found, settings.flag_below), "rankings/agreement.png")
    for name, measured in found.annotators.items():
        where = f"agreement/annotator/{re.sub(r'[^A-Za-z0-9_. -]', '_', name)}"
        metrics |= {f"{where}/{key}": measured[key] for key in ("alpha", "agreement", "pairs", "ties")}
    if found.criterion is not None:
        mlflow.set_tag("criterion", found.criterion)
    return {name: value for name, value in metrics.items() if value is not None}
