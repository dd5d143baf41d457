"""The view of all runs that is stored with the experiment."""

import json

import mlflow

from rlhf_lib.recipe import load_recipe, shipped
from tasks.tracking import views


def test_what_a_shipped_recipe_s_judges_find_is_in_its_columns(mlflow_store, tmp_path):
    with mlflow_store(tmp_path):
        experiment = mlflow.set_experiment("rlhf")
        views.keep(experiment)
        view = mlflow.get_experiment(experiment.experiment_id).tags[f"mlflow.sharedViewState.{views.KEY}"]
    columns = json.loads(json.loads(view)["state"])["selectedColumns"]
    assert len(set(columns)) == len(columns)  # several recipes have judges of one name
    for name in shipped():
        assert {f"metrics.`judge/{judge}/delta`" for judge in load_recipe(name).evaluation.judges} <= set(columns)
    assert "metrics.`judge/helps/delta`" in columns
