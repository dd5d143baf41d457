"""The judges stage: reward models trained on pairs that the reward model never sees, to judge what PPO made."""

from __future__ import annotations

import mlflow
from prefect import task

from rlhf_lib.recipe import Recipe
from rlhf_lib.recipe.judges import JudgeConfig
from tasks.results import JudgeModels, PreparedData, StartingPolicy
from tasks.stage.keys import JUDGES, reward_fingerprint
from tasks.stage.options import OPTIONS
from tasks.stage.run import run_stage
from tasks.tracking.runs import PipelineRun


def trains_judges(recipe: Recipe) -> bool:
    """Whether the recipe has judges that are trained here, without which there is no such stage."""
    return any(judge.pairs is not None for judge in recipe.evaluation.judges.values())


@task(name="judges", **OPTIONS)
def train_judges(recipe: Recipe, run: PipelineRun, data: PreparedData, policy: StartingPolicy) -> JudgeModels:
    """Train every judge with `pairs: held_out` on its own part of the pairs, from its model or the base model."""
    from datasets import load_from_disk

    from rlhf_lib.data.held_out import share_out
    from rlhf_lib.data.sources import fingerprint
    from rlhf_lib.models.device import pick_device, pick_dtype
    from rlhf_lib.training.reward_model import train_reward_model
    from rlhf_lib.training.supervised import curve

    assert data.preferences is not None, "the recipe requires pairs for such a judge"
    train, test = load_from_disk(data.preferences.train), load_from_disk(data.preferences.test)
    left, shares = share_out(recipe, train)
    judges = {name: recipe.evaluation.judges[name] for name in shares}
    device = pick_device(recipe.compute)
    key = JUDGES.key(
        {
            name: judge.model_dump(mode="json", exclude={"checks", "gate", "normalize"})
            for name, judge in judges.items()
        },
        {name: reward_fingerprint(judge) if judge.model else policy.fingerprint for name, judge in judges.items()},
        [recipe.seed, device.type, str(pick_dtype(recipe.compute, device))],
        [fingerprint(train), fingerprint(test)],
    )
    with run_stage(JUDGES, run, key=key) as current:
        if current.reused:
            return current.result
        models: dict[str, str] = {}
        metrics: dict[str, float] = {}

        def train_one(name: str, judge: JudgeConfig) -> None:
            folder = current.folder / name
            found, log = train_reward_model(
                shares[name],
                judge.model or policy.model,
                folder,
                reward=judge,
                compute=recipe.compute,
                seed=recipe.seed,
                held_out=test,
                on_log=lambda step, logged: current.log_metrics(
                    {f"{name}/train/{key}": value for key, value in logged.items()}, step
                ),
            )
            mlflow.log_figure(curve(log, "loss", "accuracy", "margin"), f"{name}.png")
            models[name] = str(folder)
            metrics.update({f"{name}/{key}": value for key, value in found.items()})

        for name, judge in judges.items():
            mlflow.log_param(f"judges.{name}", f"{len(shares[name])} of {len(train)} pairs, split off by prompt")
            train_one(name, judge)
        current.log_metrics(metrics)
        current.finish(
            JudgeModels(
                models=models,
                pairs={name: len(part) for name, part in shares.items()},
                left=len(left),
                metrics=metrics,
            )
        )
    return current.result
