"""The view of all runs that is stored with the MLflow experiment: its columns, its charts.

MLflow keeps views as tags of the experiment, `mlflow.sharedViewState.KEY`, and opens one at
`#/experiments/ID/runs?viewStateShareKey=KEY`. The format is the one that *Save view* writes in MLflow 3.17.
"""

from __future__ import annotations

import json
import time
from functools import cache
from typing import Any

import mlflow
from mlflow.entities import Experiment

from rlhf_lib.recipe import load_recipe, shipped

KEY = "rlhf"
CURVES = ("ppo/mean_scores", "objective/kl")  # of PPO, by step: the parent run has them too
_TAG = f"mlflow.sharedViewState.{KEY}"
_NAME = "Reward, KL, promotion"
_CHARTS = {
    "Reward and KL": {"ppo/mean_scores": "LINE", "objective/kl": "LINE", "reward/delta": "BAR"},
    "Evaluation": {"ppo/kl": "BAR", "perplexity/policy": "BAR", "diversity/distinct_2_policy": "BAR"},
}


def keep(experiment: Experiment) -> None:
    """Store the view with the experiment; one that somebody has changed in MLflow stays as it is."""
    state, now = json.dumps(_state()), int(time.time() * 1000)
    if (stored := experiment.tags.get(_TAG)) is not None:
        view = json.loads(stored)
        if view["state"] == state or view.get("updatedAt") != view["createdAt"]:
            return
    view = {"name": _NAME, "createdAt": now, "updatedAt": now, "state": state}
    mlflow.MlflowClient().set_experiment_tag(experiment.experiment_id, _TAG, json.dumps(view))


@cache
def _columns() -> dict[str, int]:
    """Columns and their widths in pixels. Of the judges' MLflow shows those that some run has."""
    judges = sorted({name for recipe in shipped() for name in load_recipe(recipe).evaluation.judges})
    return {
        "attributes.`Run Name`": 280,
        "tags.`promoted`": 85,
        "metrics.`reward/delta`": 100,
        **{f"metrics.`judge/{name}/delta`": 130 for name in judges},
        "metrics.`reward/policy`": 100,
        "metrics.`ppo/kl`": 80,
        "metrics.`perplexity/policy`": 120,
        "attributes.`Models`": 220,
        "attributes.`Dataset`": 170,
        "tags.`reason`": 320,
    }


def _state() -> dict[str, Any]:
    columns = _columns()
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "columnOrder": list(columns),
        "columnWidths": columns,
        "runsHiddenMode": "FIRST_10_RUNS",
        "compareRunCharts": [
            _chart(kind, metric, section) for section, charts in _CHARTS.items() for metric, kind in charts.items()
        ],
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}
            for name in _CHARTS
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def _chart(kind: str, metric: str, section: str) -> dict[str, Any]:
    chart = {
        "uuid": metric,
        "type": kind,
        "metricKey": metric,
        "displayName": metric,
        "metricSectionId": section,
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
    }
    if kind == "BAR":
        return chart
    return chart | {
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "selectedXAxisMetricKey": "",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
        "useGlobalXaxisKey": True,
        "ignoreOutliers": False,
    }
