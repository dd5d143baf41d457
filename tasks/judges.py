"""The judges stage: reward models trained on pairs that the reward model never sees, to judge what PPO made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlflow
from prefect import task

from rlhf_lib.recipe import Recipe
from rlhf_lib.recipe.judges import JudgeConfig
from tasks.results import JudgeModels, PreparedData, StartingPolicy
from tasks.stage.keys import JUDGES, reward_fingerprint
from tasks.stage.options import OPTIONS
from tasks.stage.run import run_stage
from tasks.tracking.runs import PipelineRun

if TYPE_CHECKING:
    from datasets import Dataset


@task(name="judges", **OPTIONS)
def train_judges(recipe: Recipe, run: PipelineRun, data: PreparedData, policy: StartingPolicy) -> JudgeModels:
    """Train every judge with `pairs: held_out` on its own part of the pairs, from its model or the base model, and put
    the members of ensembles on one scale."""
    from datasets import load_from_disk

    from rlhf_lib.data.held_out import share_out
    from rlhf_lib.data.sources import fingerprint
    from rlhf_lib.models.device import pick_device, pick_dtype
    from rlhf_lib.ppo.reference import sample_reference
    from rlhf_lib.rewards.build import scale_parts
    from rlhf_lib.rewards.judging import judging
    from rlhf_lib.training.reward_parts import train_reward_parts
    from rlhf_lib.training.supervised import curve

    judges = {name: judge for name, judge in recipe.evaluation.judges.items() if judge.has_folder}
    train = test = None
    at_hand = left = 0
    shares: dict[str, Dataset] = {}
    if data.preferences is not None:  # a judge that is trained here requires them
        train, test = load_from_disk(data.preferences.train), load_from_disk(data.preferences.test)
        rest, shares = share_out(recipe, train)
        at_hand, left = len(train), len(rest)
    scaled = any(judge.scaled() for judge in judges.values())
    device = pick_device(recipe.compute)
    key = JUDGES.key(
        {
            name: judge.model_dump(mode="json", exclude={"checks", "gate", "normalize"})
            for name, judge in judges.items()
        },
        {
            name: policy.fingerprint if judge.pairs is not None and judge.model is None else reward_fingerprint(judge)
            for name, judge in judges.items()
        },
        [recipe.seed, device.type, str(pick_dtype(recipe.compute, device)), recipe.policy.chat_settings],
        [fingerprint(rows) for rows in (train, test) if rows is not None],
        [
            policy.fingerprint,
            recipe.generation.model_dump(mode="json"),
            fingerprint(load_from_disk(policy.prompts.train)),
        ]
        if scaled
        else None,
    )
    with run_stage(JUDGES, run, key=key) as current:
        if current.reused:
            return current.result
        metrics: dict[str, float] = {}

        def train_one(name: str, judge: JudgeConfig) -> None:
            found, logs = train_reward_parts(
                shares[name],
                policy.model,
                current.folder / name,
                reward=judge,
                compute=recipe.compute,
                seed=recipe.seed,
                held_out=test,
                policy=recipe.policy,
                on_log=lambda step, logged: current.log_metrics(
                    {f"{name}/train/{key}": value for key, value in logged.items()}, step
                ),
            )
            for path, log in logs.items():
                mlflow.log_figure(curve(log, "loss", "accuracy", "margin"), f"{name}/{path}".rstrip("/") + ".png")
            metrics.update({f"{name}/{key}": value for key, value in found.items()})

        for name in shares:
            mlflow.log_param(f"judges.{name}", f"{len(shares[name])} of {at_hand} pairs, split off by prompt")
            train_one(name, judges[name])
        if scaled:
            queries, sampled, columns = sample_reference(recipe, policy.model, policy.prompts.train)
            for name, judge in judges.items():
                with judging(name):
                    folder = current.folder / name
                    scales = scale_parts(judge, folder, queries, sampled.texts, sampled.ended, device, columns)
                metrics |= {f"{name}/{path}/{k}": v for path, scale in scales.items() for k, v in vars(scale).items()}
        current.log_metrics(metrics)
        current.finish(
            JudgeModels(
                models={name: str(current.folder / name) for name in judges},
                pairs={name: len(part) for name, part in shares.items()},
                left=left,
                metrics=metrics,
            )
        )
    return current.result
