"""A report to where people look for it: its folder, MLflow and Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from prefect.artifacts import create_markdown_artifact

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rlhf_lib.evaluation.report import BeforeAfterReport, ComparisonReport


def publish(
    written: BeforeAfterReport | ComparisonReport,
    figures: Mapping[str, Figure],
    folder: Path,
    *,
    key: str,
    description: str,
) -> Path:
    """Draw the figures and write the page, with all of them in it; log both and the report's Markdown to the active
    MLflow run, and the Markdown as Prefect's artifact `key`. Returns the page's path, report.html in `folder`."""
    from rlhf_lib.drawing import save

    page, plots, markdown = folder / "report.html", folder / "plots", written.markdown()
    page.write_text(written.html(save(figures, plots)), encoding="utf-8")
    mlflow.log_artifacts(str(plots), plots.name)
    mlflow.log_artifact(str(page))
    mlflow.log_text(markdown, "report.md")
    create_markdown_artifact(markdown, key=key, description=description)
    return page
