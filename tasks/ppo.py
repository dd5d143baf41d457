"""PPO as a Prefect task: metrics to MLflow as they come, progress in terminal and Prefect, resumed when killed."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS
from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from rlhf_lib.recipe import Recipe
from tasks.results import PPOResult, PreparedData, RewardArtifact, StartingPolicy
from tasks.stage.keys import PPO
from tasks.stage.options import HEAVY, can_pass
from tasks.stage.run import StageRun, run_stage
from tasks.tracking.runs import PipelineRun

if TYPE_CHECKING:
    from rlhf_lib.ppo.run import Job
    from rlhf_lib.ppo.statistics import Stats

SAMPLES = "samples.json"
PROGRESS_EVERY = 2.0  # seconds between updates of the Prefect artifact: each is a call to its server


@task(name="ppo", **HEAVY)
def run_ppo(
    recipe: Recipe, run: PipelineRun, data: PreparedData, policy: StartingPolicy, reward: RewardArtifact
) -> PPOResult:
    """Train the policy against the reward.

    Checkpoints lie under a key of everything that decides the run, so the same recipe started again after a crash goes
    on from the last one; they move to the stage's folder when PPO has ended.
    """
    from rlhf_lib.ppo.faults import Diverged
    from rlhf_lib.ppo.run import Job, best_step
    from rlhf_lib.ppo.statistics import training_curves

    settings = recipe.model_dump(
        mode="json", include={"data", "policy", "reward", "generation", "ppo", "compute", "seed"}
    )
    # these bound memory and share work: a run that they have stopped goes on with others
    del settings["ppo"]["micro_batch_tokens"], settings["compute"]["processes"], settings["compute"]["accelerate"]
    constants = reward.normalization.model_dump() if reward.normalization else None
    key = PPO.key(settings, policy.fingerprint, reward.fingerprint, constants, data.fingerprints)
    # of a fresh run only itself, tried again, goes on
    checkpoints = Path(run.run_dir) / "checkpoints" / (f"{key}-{run.parent_run_id}" if run.fresh else key)
    with run_stage(PPO, run, key=key) as current:
        if current.reused:
            _keep(checkpoints, current)
            return current.result
        job = Job(
            recipe=recipe,
            policy=policy.model,
            prompts=policy.prompts.model_dump(),
            reward=reward.model,
            score_constants=(constants["mean"], constants["std"]) if constants else None,
            folder=str(current.folder),
            checkpoints=str(checkpoints),
            key=key,
        )
        start = time.perf_counter()
        try:
            history = _follow(job, current)
        except Diverged as error:
            mlflow.log_dict({"message": str(error), "rows": error.rows}, "diverged.json")
            raise
        seconds = time.perf_counter() - start

        steps = len(history)
        if (kept := recipe.ppo.keep_best) is not None and (best := best_step(history, kept)) is not None:
            get_run_logger().info("ppo: step %d is kept, %s %.4g", best, kept, history[best - 1][kept])
            mlflow.set_tag("best_step", best)
        last = history[-5:]
        kl = sum(stats["objective/kl"] for stats in last) / len(last)
        metrics = {"ppo/steps": steps, "ppo/seconds": seconds, "ppo/final_kl": kl}
        current.log_metrics(metrics)
        mlflow.log_figure(training_curves(history), "training_curves.png")
        current.finish(
            PPOResult(
                policy=str(current.folder / "policy"),
                reference=str(current.folder / "reference"),
                steps=steps,
                seconds=seconds,
                kl=kl,
                metrics=metrics,
            )
        )
    _keep(checkpoints, current)
    return current.result


def _keep(checkpoints: Path, current: StageRun[PPOResult]) -> None:
    """Move the checkpoints into the folder of the stage, which is whole: PPO done anew begins at its first step."""
    if checkpoints.exists():
        target = current.folder.resolve() / "checkpoints"
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(checkpoints, target)


def _follow(job: Job, current: StageRun[PPOResult]) -> list[Stats]:
    """Run the job to its end, telling MLflow, the terminal and Prefect of each step as it is done."""
    from tqdm import tqdm

    from rlhf_lib.ppo.run import perform

    logger, steps = get_run_logger(), job.recipe.ppo.steps
    history: list[Stats] = []
    samples: list[dict[str, Any]] = []
    resumed = 0
    progress = ProgressArtifact(f"PPO of {job.recipe.name}")
    with (
        closing(perform(job)) as done,  # type: ignore[type-var]
        tqdm(total=steps, desc="ppo", unit="step", dynamic_ncols=True, disable=None) as bar,
    ):
        for event in done:
            history.append(event.stats)
            current.log_metrics(event.stats, step=event.step)
            bar.update()
            bar.set_postfix(score=f"{event.stats['ppo/mean_scores']:.3f}", kl=f"{event.stats['objective/kl']:.2f}")
            if event.resumed:
                resumed = event.step
                continue
            if resumed:
                logger.info("ppo: goes on from step %d of an interrupted run", resumed)
                mlflow.set_tag("resumed_at_step", resumed)
                resumed = 0
            progress.update(100.0 * event.step / steps)
            if event.samples:
                samples += [{"step": event.step} | row for row in event.samples]
                current.later(_log_samples, current.run.info.run_id, list(samples))
    progress.update(100.0, last=True)
    if len(history) < steps:
        logger.info("ppo: stopped at step %d, the mean score reached its threshold", len(history))
    return history


def _log_samples(run_id: str, samples: list[dict[str, Any]]) -> None:
    """The whole table each time: appended to, a row whose arrival wasn't heard of would come twice."""
    columns = ["step", "query", "response", "score"]
    data = [[row[column] for column in columns] for row in samples]
    mlflow.log_dict({"columns": columns, "data": data}, SAMPLES, run_id=run_id)
    shown = json.dumps([{"path": SAMPLES, "type": "table"}])
    mlflow.MlflowClient().set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, shown)  # by which MLflow shows it as a table


class ProgressArtifact:
    """Prefect's bar for the run's page; a server that is away for a while is none of PPO's concern."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.id: UUID | None = None
        self.updated = -PROGRESS_EVERY
        self.update(0.0)

    def update(self, progress: float, *, last: bool = False) -> None:
        """Show so many percent, where the last call was some time ago."""
        if not last and time.monotonic() - self.updated < PROGRESS_EVERY:
            return
        self.updated = time.monotonic()
        try:
            if self.id is None:
                self.id = create_progress_artifact(progress, key="ppo-progress", description=self.description)  # type: ignore[assignment]
            else:
                update_progress_artifact(self.id, progress=progress)
        except Exception as error:
            if not can_pass(error):
                raise
            get_run_logger().warning("ppo: Prefect's server can't be told of the progress: %s", error)
