"""MLflow around a pipeline run: the parent run of the stages' child runs, and the closing of runs left open."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import mlflow
import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from pydantic import BaseModel

from rlhf_lib.credentials import redact
from rlhf_lib.evaluation.measures import flat_metrics
from rlhf_lib.recipe import Recipe, flatten
from tasks.tracking import run_folder, run_logger, views

EXPERIMENT = "rlhf"
# in the order in which MLflow's pages offer them
HEADLINES = ("reward", "ppo", "perplexity", "answer_perplexity", "diversity", "reward_model")
BASELINES = ("best_of_4", "best_of_16", "sft_on_chosen")  # of all that a record has


class PipelineRun(BaseModel):
    """What every task knows of the run that it belongs to."""

    run_dir: str
    parent_run_id: str
    name: str = ""
    fresh: bool = False

    def finish(self, record: dict[str, Any]) -> None:
        """Log the run's record and headline metrics to the parent run, under the same names for every recipe."""
        client = mlflow.MlflowClient()
        known = client.get_run(self.parent_run_id).data.metrics
        mlflow.log_dict(record, "summary.json", run_id=self.parent_run_id)
        mlflow.log_metrics(
            {name: value for name, value in headline(record).items() if known.get(name) != value},
            run_id=self.parent_run_id,
        )
        for key, value in (record["model"] or {}).items():
            client.set_tag(self.parent_run_id, f"model.{key}", value)
        if evaluation := record.get("evaluation"):
            client.set_tag(self.parent_run_id, "held_out_prompts", str(evaluation["held_out"]).lower())
        if record.get("until") is None:  # the next run goes on from one that was told to stop early
            run_folder.forget(Path(self.run_dir), self.parent_run_id)


@contextmanager
def pipeline_run(
    recipe: Recipe,
    run_dir: str,
    *,
    name: str | None = None,
    fresh: bool = False,
    tags: Mapping[str, Any] | None = None,
) -> Iterator[PipelineRun]:
    """Open the parent run, `name` or else the recipe's, with the flattened recipe as params and the recipe's name, the
    git commit and the given tags as tags. A flow run that is retried keeps its parent run."""
    use_experiment(run_dir)
    root = Path(run_dir)
    close_abandoned(root)
    known = {"recipe": recipe.name, "git_commit": git_commit()} | dict(tags or {})
    known = {key: redact(str(value)) for key, value in known.items() if value is not None}
    params = {key: _shorten(redact(str(value))) for key, value in flatten(recipe).items()}
    before = _earlier_attempt(known.get("prefect_flow_run_id"), params)
    title = redact(name or recipe.name)
    with (
        mlflow.start_run(before.info.run_id if before else None, run_name=title, tags=known) as parent,
        run_folder.running(root, parent.info.run_id),
    ):
        if before is not None:
            run_logger().info("goes on with run %s, whose earlier attempt did not end", parent.info.run_id)
            if "failure" in before.data.tags:
                mlflow.delete_tag("failure")
        mlflow.log_params(params)
        mlflow.log_text(redact(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)), "recipe.yaml")
        try:
            yield PipelineRun(run_dir=run_dir, parent_run_id=parent.info.run_id, name=title, fresh=fresh)
        except Exception as error:
            mlflow.set_tag("failure", redact(str(error))[:5000])
            raise


def _earlier_attempt(flow_run_id: str | None, params: dict[str, str]) -> Run | None:
    """The parent run of an earlier attempt at the same flow run with the same recipe, whose file may have changed."""
    for run in tagged("prefect_flow_run_id", flow_run_id) if flow_run_id else []:
        if "mlflow.parentRunId" not in run.data.tags and run.data.params.items() <= params.items():
            return run
    return None


def use_experiment(run_dir: str) -> None:
    """Use the experiment for all runs, with the view that shows them; with an embedded store its artifacts are in the
    run folder."""
    if mlflow.get_experiment_by_name(EXPERIMENT) is None:
        local = not mlflow.get_tracking_uri().startswith("http")
        where = (Path(run_dir).absolute() / "artifacts").as_uri() if local else None
        mlflow.create_experiment(EXPERIMENT, artifact_location=where)
    views.keep(mlflow.set_experiment(EXPERIMENT))


def headline(record: Mapping[str, Any]) -> dict[str, float]:
    """The parent's metrics: `reward/delta`, `perplexity/policy`, ...; what doesn't apply is left out."""
    sections = {section: record.get(section) or {} for section in HEADLINES}
    found = record.get("baselines") or {}
    baselines = {name: {key: found[name][key] for key in ("reward", "kl")} for name in BASELINES if name in found}
    sections |= {"evaluation": record.get("metrics") or {}, "judge": record.get("judges") or {}, "baseline": baselines}
    sections |= {"lm_eval": record.get("lm_eval") or {}}
    return flat_metrics(sections)


def git_commit() -> str | None:
    """The commit of the project's checkout, with -dirty if files differ; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def redact_error(error: BaseException) -> None:
    """Take secrets out of an error's message, in place, since Prefect stores it with the state of task and flow."""
    error.args = tuple(redact(part) if isinstance(part, str) else part for part in error.args)
    if isinstance(message := getattr(error, "message", None), str):
        error.message = redact(message)  # type: ignore[attr-defined]


def _shorten(text: str) -> str:
    return text if len(text) <= 500 else f"{text[:497]}..."


def mlflow_link(run_id: str) -> str:
    """The run's page."""
    return _page(f"experiments/{mlflow.get_run(run_id).info.experiment_id}/runs/{run_id}")


def runs_link(server: str | None = None) -> str:
    """The page of all runs on `server` (None: as for the other links), in the view that `use_experiment` keeps."""
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None, "use_experiment comes first"
    return _page(f"experiments/{experiment.experiment_id}/runs", server, viewStateShareKey=views.KEY)


def model_link(uri: str) -> str | None:
    """The page of a registered version, models:/NAME/VERSION; None for anything else."""
    if not uri.startswith("models:/"):
        return None
    name, _, version = uri.removeprefix("models:/").rpartition("/")
    return _page(f"models/{name}/versions/{version}")


def _page(path: str, server: str | None = None, **query: str) -> str:
    """A page on the tracking server, or where `rlhf ui` would show an embedded store. MLflow shows its pages for chats
    and traces where the address doesn't ask for those about training."""
    uri = server or mlflow.get_tracking_uri()
    server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/{path}?{urlencode({'workflowType': 'machine_learning'} | query)}"


_OPEN = ("RUNNING", "SCHEDULED")


def close_runs(flow_run_id: str, *, cancelled: bool, reason: str, root: Path | None = None) -> list[str]:
    """End the runs of a Prefect flow run, parent and children, that are still open: KILLED where it was cancelled, else
    FAILED, with the reason in the parent's tag `failure` unless one is there. Returns the ids of those it ended.

    A cancelled run's signal may have passed through the flow and closed them as failed: these become KILLED too. One
    that, in the run folder `root`, runs again meanwhile is left alone.
    """
    closed = []
    for parent in tagged("prefect_flow_run_id", flow_run_id):
        if root is None or not run_folder.is_running(root, parent.info.run_id):
            closed += close_tree(parent, cancelled=cancelled, reason=reason)
    return closed


def close_abandoned(root: Path) -> None:
    """Close the MLflow runs of pipelines whose process is gone, and remove their unfinished stages."""
    for parent in run_folder.abandoned(root):
        try:
            run = mlflow.get_run(parent)
        except MlflowException:
            continue  # another store's
        if run.info.status in _OPEN:
            close_tree(run, cancelled=False, reason="its process was gone before it ended")


def close_tree(parent: Run, *, cancelled: bool, reason: str) -> list[str]:
    """End a parent run and its children, if they are open."""
    client = mlflow.MlflowClient()
    wrong = (*_OPEN, "FAILED") if cancelled else _OPEN
    closed = []
    for run in (*tagged("mlflow.parentRunId", parent.info.run_id), parent):
        if run.info.status in wrong:
            client.set_terminated(run.info.run_id, "KILLED" if cancelled else "FAILED")
            closed.append(run.info.run_id)
    if parent.info.status != "FINISHED" and "failure" not in parent.data.tags:
        client.set_tag(parent.info.run_id, "failure", redact(reason)[:5000])
    return closed


def tagged(name: str, value: str) -> list[Run]:
    """The runs with that tag, in all experiments."""
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, filter_string=f"tags.`{name}` = '{value}'"))
