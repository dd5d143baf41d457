"""PPO as a Prefect task: metrics to MLflow as they come, progress in terminal and Prefect, resumed when killed."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import mlflow
from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from rlhf_lib.recipe import Recipe
from tasks.tracking import PipelineRun, Stage, code_key, content_key, stage

if TYPE_CHECKING:
    from rlhf_lib.ppo.stats import Stats
    from rlhf_lib.ppo.trainer import PPOTrainer

PROGRESS_EVERY = 2.0  # seconds between updates of the Prefect artifact: each is a call to its server


@task(name="ppo")
def run_ppo(
    recipe: Recipe, run: PipelineRun, data: dict[str, Any], policy: dict[str, Any], reward: dict[str, Any]
) -> dict[str, Any]:
    """Train the policy against the reward. The record holds the folders of policy and reference, steps, seconds, KL.

    Checkpoints lie under a key of everything that decides the run, so the same recipe started again after a crash goes
    on from the last one; they move to the stage's folder when PPO ends.
    """
    from rlhf_lib.ppo.checkpoint import load_best, resume
    from rlhf_lib.ppo.faults import Diverged

    settings = recipe.model_dump(
        mode="json", include={"data", "policy", "reward", "generation", "ppo", "compute", "seed"}
    )
    del settings["ppo"]["micro_batch_tokens"]  # bounds memory alone: after running out of it the run goes on
    inputs = (policy["fingerprint"], reward["fingerprint"], reward["normalization"], data["fingerprints"])
    key = content_key(
        settings,
        inputs,
        code_key("ppo", "models", "rewards"),
    )
    checkpoints = Path(run.run_dir) / "checkpoints" / key
    with stage("ppo", run) as current:
        logger = get_run_logger()
        if run.fresh:
            shutil.rmtree(checkpoints, ignore_errors=True)
        trainer = build_trainer(recipe, policy, reward)
        history = resume(trainer, checkpoints, key=key)
        if history:
            logger.info("ppo: goes on from step %d of an interrupted run", trainer.step)
            mlflow.set_tag("resumed_at_step", trainer.step)
            for step, stats in enumerate(history, start=1):
                current.log_metrics(stats, step=step)
        start = time.perf_counter()
        try:
            history = _train(recipe, trainer, current, history or [], checkpoints, key)
        except Diverged as error:
            mlflow.log_dict({"message": str(error), "rows": error.rows}, "diverged.json")
            raise
        seconds = time.perf_counter() - start

        if (kept := recipe.ppo.keep_best) is not None and load_best(trainer, checkpoints):
            best = max(range(len(history)), key=lambda i: history[i].get(kept, -math.inf))
            logger.info("ppo: step %d is kept, %s %.4g", best + 1, kept, history[best][kept])
            mlflow.set_tag("best_step", best + 1)
        folders = {name: current.folder / name for name in ("policy", "reference")}
        trainer.policy.save_pretrained(folders["policy"], trainer.tokenizer)
        with trainer.policy.reference() as reference:
            _save_reference(trainer, reference, policy["model"], folders["reference"])
        if checkpoints.exists():
            shutil.move(checkpoints, current.folder / "checkpoints")
        last = history[-5:]
        kl = sum(stats["objective/kl"] for stats in last) / len(last)
        metrics = {"ppo/steps": trainer.step, "ppo/seconds": seconds, "ppo/final_kl": kl}
        current.log_metrics(metrics)
        from rlhf_lib.ppo.plots import training_curves

        mlflow.log_figure(training_curves(history), "training_curves.png")
        current.record = {
            "policy": str(folders["policy"]),
            "reference": str(folders["reference"]),
            "steps": trainer.step,
            "seconds": seconds,
            "kl": kl,
            "metrics": metrics,
        }
    return current.record


def build_trainer(recipe: Recipe, policy: dict[str, Any], reward: dict[str, Any]) -> PPOTrainer:
    """The trainer that a recipe describes, on the prompts and models of the earlier stages' records."""
    import torch
    from datasets import load_from_disk

    from rlhf_lib.models.loading import load_causal_lm, load_tokenizer, pick_device, pick_dtype
    from rlhf_lib.models.policy import Policy
    from rlhf_lib.ppo.trainer import PPOTrainer
    from rlhf_lib.rewards.build import build_reward

    torch.manual_seed(recipe.seed)
    device = pick_device(recipe.compute)
    trust = recipe.policy.trust_remote_code
    model = load_causal_lm(policy["model"], dtype=torch.float32, trust_remote_code=trust)
    constants = reward["normalization"]
    held_out = load_from_disk(policy["prompts"]["test"]).to_list()
    return PPOTrainer(
        Policy(
            model,
            recipe.policy.lora,
            unfrozen_layers=recipe.policy.unfrozen_layers,
            critic=recipe.policy.critic == "separate",
            gradient_checkpointing=recipe.policy.gradient_checkpointing,
        ).to(device),
        load_tokenizer(policy["model"], trust_remote_code=trust),
        build_reward(recipe.reward, reward["model"], device),
        load_from_disk(policy["prompts"]["train"]).to_list(),
        recipe.ppo,
        recipe.generation,
        seed=recipe.seed,
        dtype=pick_dtype(recipe.compute, device),
        score_constants=(constants["mean"], constants["std"]) if constants else (0.0, 1.0),
        eval_prompts=held_out[: recipe.ppo.eval_prompts] if recipe.ppo.eval_every else None,
    )


def _train(
    recipe: Recipe, trainer: PPOTrainer, current: Stage, history: list[Stats], checkpoints: Path, key: str
) -> list[Stats]:
    from tqdm import tqdm

    from rlhf_lib.ppo.checkpoint import save_best, save_checkpoint
    from rlhf_lib.ppo.interrupt import boundary_on_sigterm

    def save() -> None:
        save_checkpoint(trainer, checkpoints, key=key, history=history, keep=recipe.ppo.keep_checkpoints)

    steps = recipe.ppo.steps
    progress: UUID = create_progress_artifact(  # type: ignore[assignment]
        progress=0.0, key="ppo-progress", description=f"PPO of {recipe.name}"
    )
    updated = time.monotonic()
    with (
        boundary_on_sigterm(trainer, save),
        tqdm(total=steps, initial=trainer.step, desc="ppo", unit="step", dynamic_ncols=True, disable=None) as bar,
    ):
        for stats in trainer.train():
            history.append(stats)
            current.log_metrics(stats, step=trainer.step)
            bar.update()
            bar.set_postfix(score=f"{stats['ppo/mean_scores']:.3f}", kl=f"{stats['objective/kl']:.2f}")
            if time.monotonic() - updated > PROGRESS_EVERY:
                update_progress_artifact(progress, progress=100.0 * trainer.step / steps)
                updated = time.monotonic()
            kept = recipe.ppo.keep_best
            if kept in stats and all(stats[kept] > past.get(kept, -math.inf) for past in history[:-1]):
                save_best(trainer, checkpoints)
            if trainer.step % recipe.ppo.sample_every == 0 or trainer.step in (1, steps):
                _log_samples(trainer, recipe.ppo.samples)
            every = recipe.ppo.checkpoint_every
            if every and trainer.step % every == 0 and trainer.step < steps:
                save()
    update_progress_artifact(progress, progress=100.0)
    if trainer.step < steps:
        get_run_logger().info("ppo: stopped at step %d, the mean score reached its threshold", trainer.step)
    return history


def _log_samples(trainer: PPOTrainer, count: int) -> None:
    rows = trainer.samples[:count]
    table = {"step": [trainer.step] * len(rows)} | {k: [row[k] for row in rows] for k in ("query", "response", "score")}
    mlflow.log_table(table, "samples.json")


def _save_reference(trainer: PPOTrainer, reference: Any, source: str, folder: Path) -> None:
    """The reference as an ordinary model folder; under an adapter the base is loaded anew, free of its layers."""
    if trainer.policy.adapted is not None:
        from rlhf_lib.models.loading import load_causal_lm

        reference = load_causal_lm(source)
    reference.save_pretrained(folder)
    trainer.tokenizer.save_pretrained(folder)
