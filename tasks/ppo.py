"""The PPO stage: metrics to MLflow as they come, progress in the terminal and in Prefect, resumed after a kill."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS
from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from rlhf_lib.recipe import Recipe
from rlhf_lib.recipe.learning import JUDGE
from tasks.results import JudgeModels, PPOResult, PreparedData, RewardArtifact, StartingPolicy
from tasks.stage.keys import PPO, reward_fingerprint
from tasks.stage.options import OPTIONS
from tasks.stage.run import StageRun, run_stage
from tasks.tracking import curves
from tasks.tracking.judged_steps import dataset_of, log_judged_steps
from tasks.tracking.retries import is_retryable
from tasks.tracking.runs import PipelineRun

if TYPE_CHECKING:
    from rlhf_lib.ppo.run import Progress
    from rlhf_lib.ppo.statistics import Stats

SAMPLES = "samples.json"
_SILENT = {"checks", "gate", "normalize"}  # a judge's keys that change nothing in what it is asked here
SHOWN = {"reward": "ppo/mean_scores", "KL": "objective/kl", "held-out reward": "eval/mean_scores"}  # beside the step
PROGRESS_EVERY = 2.0  # seconds between updates of the Prefect artifact: each is a call to its server


@task(name="ppo", **OPTIONS)
def run_ppo(
    recipe: Recipe,
    run: PipelineRun,
    data: PreparedData,
    policy: StartingPolicy,
    reward: RewardArtifact,
    judges: JudgeModels | None = None,
) -> PPOResult:
    """Train the policy against the reward. `judges`: those trained here, which are asked while it learns.

    Checkpoints lie under a key of everything that decides the run, so the same recipe started again after a crash goes
    on from the last one; they move to the stage's folder when PPO has ended.
    """
    from rlhf_lib.evaluation.measures import flat_metrics
    from rlhf_lib.ppo.checkpoint import last_step
    from rlhf_lib.ppo.diagnostics import diagnose
    from rlhf_lib.ppo.faults import Diverged
    from rlhf_lib.ppo.run import Job, train
    from rlhf_lib.ppo.selection import evaluations, kept_step, picks_by_prompts, why_stopped
    from rlhf_lib.ppo.statistics import training_curves

    settings = recipe.model_dump(
        mode="json", include={"data", "policy", "reward", "generation", "ppo", "compute", "seed"}
    )
    # these bound memory and share work: a run that they have stopped goes on with others
    del settings["ppo"]["micro_batch_tokens"], settings["compute"]["processes"], settings["compute"]["accelerate"]
    constants = reward.normalization.model_dump() if reward.normalization else None
    trained = judges.models if judges else {}
    asked = recipe.judges_in_ppo
    settings["judges"] = {
        name: [judge.model_dump(mode="json", exclude=_SILENT), reward_fingerprint(judge, trained.get(name))]
        for name, judge in asked.items()
    }
    key = PPO.key(settings, policy.fingerprint, reward.fingerprint, constants, data.fingerprints)
    # of a fresh run only itself, tried again, goes on
    checkpoints = Path(run.run_dir) / "checkpoints" / (f"{key}-{run.parent_run_id}" if run.fresh else key)
    with run_stage(PPO, run, key=key) as current:
        if current.reused:
            _keep(checkpoints, current)
            curves.copy(current.result.mlflow_run_id, run.parent_run_id)
            return current.result
        job = Job(
            recipe=recipe,
            policy=policy.model,
            prompts=policy.prompts.model_dump(),
            reward=reward.model,
            judges=trained,
            score_constants=(constants["mean"], constants["std"]) if constants else None,
            folder=str(current.folder),
            checkpoints=str(checkpoints),
            key=key,
        )
        current.kept = lambda: (last_step(checkpoints), recipe.ppo.steps)
        start = time.perf_counter()
        try:
            with closing(train(job)) as events, Telling(recipe, run, current) as telling:  # type: ignore[type-var]
                for progress in events:
                    telling.step(progress)
        except Diverged as error:
            mlflow.log_dict({"message": str(error), "rows": error.rows}, "diverged.json")
            raise
        history = telling.history
        seconds = time.perf_counter() - start

        steps = len(history)
        stopped = why_stopped(telling.start, history, recipe.ppo)
        if stopped:
            get_run_logger().info("ppo: stopped after step %d: %s", steps, stopped)
            mlflow.set_tag("stopped", stopped)
        kept = kept_step(history, recipe.ppo)
        if kept is not None:
            name = str(recipe.ppo.best_statistic)
            get_run_logger().info("ppo: step %d is kept, %s %.4g", kept, name, history[kept - 1][name])
            mlflow.set_tag("best_step", kept)
        last = history[-5:]
        kl = sum(stats["objective/kl"] for stats in last) / len(last)
        symptoms = diagnose(history, recipe.ppo, recipe.generation)
        if symptoms:
            mlflow.set_tag("warnings", ", ".join(symptom.kind for symptom in symptoms))
        warnings = [asdict(symptom) | {"message": str(symptom)} for symptom in symptoms]
        mlflow.log_dict({"warnings": warnings}, "warnings.json")
        metrics = {"ppo/steps": steps, "ppo/seconds": seconds, "ppo/final_kl": kl, "ppo/warnings": len(symptoms)}
        prompts = "texts" if recipe.ppo.eval_texts else "selection" if picks_by_prompts(recipe) else "evaluation"
        result = PPOResult(
            policy=str(current.folder / "policy"),
            reference=str(current.folder / "reference"),
            steps=steps,
            seconds=seconds,
            kl=kl,
            kept_step=kept,
            stopped=stopped,
            evaluations=evaluations(telling.start, history),
            evaluated_on=prompts if recipe.ppo.eval_every else None,
            warnings=warnings,
        )
        metrics |= flat_metrics({"ppo": result.extremes | {"kept_step": kept}})
        current.log_metrics(metrics)
        mlflow.log_figure(training_curves(history), "training_curves.png")
        if asked:
            role = {"evaluation": "prompts/test", "selection": "prompts/train"}.get(prompts)
            current.later(
                log_judged_steps,
                current.run.info.run_id,
                recipe.name,
                result.evaluations,
                _weights(result, checkpoints, current.folder),
                dataset_of(run.parent_run_id, role) if role else None,
            )
        current.finish(result.model_copy(update={"metrics": metrics}))
    _keep(checkpoints, current)
    return current.result


def _weights(result: PPOResult, stored: Path, folder: Path) -> dict[int, dict[str, str]]:
    """Where the weights of a step lie that are kept, by step: its checkpoint's folder, as `_keep` moves it, and the
    exported policy's."""
    from rlhf_lib.ppo.checkpoint import checkpoints, step_of

    found = {
        step_of(path): {"weights": "checkpoint", "checkpoint": str(folder.resolve() / "checkpoints" / path.name)}
        for path in checkpoints(stored)
    }
    exported = result.kept_step or result.steps
    found[exported] = found.get(exported, {}) | {"weights": "exported", "policy": result.policy}
    return found


def _keep(checkpoints: Path, current: StageRun[PPOResult]) -> None:
    """Move the checkpoints into the finished stage's folder: the next PPO with this key starts at its first step."""
    if checkpoints.exists():
        target = current.folder.resolve() / "checkpoints"
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(checkpoints, target)


class Telling:
    """Tells MLflow, the terminal and Prefect of each step as it is done."""

    def __init__(self, recipe: Recipe, run: PipelineRun, current: StageRun[PPOResult]) -> None:
        self.recipe, self.steps, self.current = recipe, recipe.ppo.steps, current
        self.curves = curves.Curves(run.parent_run_id, current.later)
        self.history: list[Stats] = []
        self.start: Stats = {}  # step 0
        self.samples: list[dict[str, Any]] = []
        self.warned: set[str] = set()  # kinds of symptoms: each is told once
        self.resumed = 0
        self.artifact = ProgressArtifact(f"PPO of {recipe.name}")

    def __enter__(self) -> Telling:
        self.current.progress.unit = "step"
        self.current.progress.report("step", 0, self.steps, {})
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(Exception):  # what MLflow has refused by now, the stage's end raises
            self.curves.flush()
        if kind is None:
            self.artifact.update(100.0, last=True)

    def step(self, progress: Progress) -> None:
        stats = progress.stats
        self.current.log_metrics(stats, step=progress.step)
        if progress.step == 0:
            self.start = stats
            return
        self.history.append(stats)
        self.curves.add(progress.step, stats)
        shown = {name: stats[key] for name, key in SHOWN.items() if key in stats}
        shown |= {f"judge {key.removeprefix(JUDGE)}": stats[key] for key in stats if key.startswith(JUDGE)}
        self.current.progress.report("step", progress.step, self.steps, shown)
        self._warn(told_before=progress.resumed)
        if progress.resumed:
            self.resumed = progress.step
            self.current.progress.begin_anew()
            return
        if self.resumed:
            get_run_logger().info("ppo: resumed at step %d of an interrupted run", self.resumed + 1)
            mlflow.set_tag("resumed_at_step", self.resumed)
            self.resumed = 0
        self.artifact.update(100.0 * progress.step / self.steps)
        if progress.samples:
            self.samples += [{"step": progress.step} | row for row in progress.samples]
            self.current.later(_log_samples, self.current.run.info.run_id, list(self.samples))

    def _warn(self, *, told_before: bool) -> None:
        """A line in the log for each kind of symptom, at the step at which it first shows."""
        from rlhf_lib.ppo.diagnostics import START, WINDOW, symptoms_at

        start, recent = self.history[:START], self.history[-WINDOW:]
        for symptom in symptoms_at(len(self.history), start, recent, self.recipe.ppo, self.recipe.generation):
            if symptom.kind not in self.warned and not told_before:
                get_run_logger().warning("ppo: %s", symptom)
            self.warned.add(symptom.kind)


def _log_samples(run_id: str, samples: list[dict[str, Any]]) -> None:
    """Send the whole table each time: with appends, a row whose answer was lost would appear twice."""
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
            if not is_retryable(error):
                raise
            get_run_logger().warning("ppo: can't report progress to Prefect's server: %s", error)
