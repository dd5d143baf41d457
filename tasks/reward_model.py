"""The reward-model stage: trained on pairs or labelled texts, or an existing model; normalized if asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from prefect import task

from rlhf_lib.recipe import Recipe
from rlhf_lib.recipe.judges import held_out_shares
from tasks.results import Folders, Normalization, PreparedData, RewardArtifact, StartingPolicy
from tasks.stage.keys import REWARD_MODEL, reward_fingerprint
from tasks.stage.options import OPTIONS
from tasks.stage.run import StageRun, run_stage
from tasks.tracking import tell_losses
from tasks.tracking.runs import PipelineRun

if TYPE_CHECKING:
    from rlhf_lib.ppo.rollout import Responses
    from rlhf_lib.rewards.calling import Columns


@task(name="reward_model", **OPTIONS)
def prepare_reward_model(
    recipe: Recipe, run: PipelineRun, data: PreparedData, policy: StartingPolicy
) -> RewardArtifact:
    """Train the reward model, on the pairs or as a classifier on the labelled texts, or check an existing one.

    Raises ModelError for an absent model or label, RecipeError for a function that can't be imported.
    """
    from datasets import Dataset

    from rlhf_lib.conversation import columns_of
    from rlhf_lib.data.losses import training_losses
    from rlhf_lib.models.device import pick_device, pick_dtype
    from rlhf_lib.ppo.reference import sample_reference
    from rlhf_lib.rewards.build import check_reward, needed_columns, scale_parts
    from rlhf_lib.rewards.check_texts import has_answers

    reward, learned = recipe.reward, recipe.reward.learned()
    rows = data.preferences if learned else data.labelled
    trained = rows is not None
    check_reward(reward, trained_here=trained)
    from_base = any(section.model is None for section in learned.values())
    source = [reward_fingerprint(reward), [policy.fingerprint, recipe.policy.chat_settings] if from_base else None]
    device = pick_device(recipe.compute)
    unused = {"checks", "model" if trained else "train"}
    if trained and not reward.normalize:
        unused |= {"label", "output"}  # another emotion to reward needs no other classifier
    settings = reward.model_dump(mode="json", exclude=unused)
    answerless = bool(needed_columns(reward)) if data.preferences else not has_answers(recipe)
    samples_needed = reward.normalize or bool(reward.scaled()) or answerless
    key = REWARD_MODEL.key(
        settings,
        source,
        [recipe.seed, device.type, str(pick_dtype(recipe.compute, device))],
        held_out_shares(recipe.evaluation.judges) if learned else {},
        [_rows(rows), data.label_names] if rows else None,
        [policy.fingerprint, recipe.generation.model_dump(mode="json"), _rows(policy.prompts)]
        if samples_needed
        else None,
    )
    with run_stage(REWARD_MODEL, run, key=key) as current:
        if learned and data.criterion:
            mlflow.MlflowClient().set_tag(current.run.info.run_id, "criterion", data.criterion)
        if current.reused:
            tell_losses("reward_model", training_losses({}, current.result.metrics))
            return current.result
        mlflow.log_params({f"reward.{k}": str(v)[:500] for k, v in settings.items()})
        model, metrics = reward.model, dict[str, float]()
        if trained:
            train = _train_on_pairs if learned else _train_classifier
            model, metrics = train(recipe, data, policy, current)
        normalization = samples = None
        if samples_needed:
            queries, sampled, columns = sample_reference(recipe, policy.model, policy.prompts.train)
            if reward.scaled():
                model = str(current.folder / "model")
                scales = scale_parts(
                    reward, Path(model), queries, sampled.texts, sampled.ended, pick_device(recipe.compute), columns
                )
                metrics |= {f"{path}/{k}": v for path, scale in scales.items() for k, v in vars(scale).items()}
            if reward.normalize:
                normalization = _normalize(recipe, queries, sampled, columns, model, current.folder)
                metrics |= {"normalization/mean": normalization.mean, "normalization/std": normalization.std}
            if answerless:
                samples = str(current.folder / "samples")
                told = {**columns_of(queries, "query"), **columns, "completions": sampled.texts}
                Dataset.from_dict(told).save_to_disk(samples)
        current.log_metrics(metrics)
        tell_losses("reward_model", training_losses({}, metrics))
        current.finish(
            RewardArtifact(
                model=model,
                fingerprint=reward_fingerprint(reward, model),
                normalization=normalization,
                samples=samples,
                metrics=metrics,
            )
        )
    return current.result


def _train_on_pairs(
    recipe: Recipe, data: PreparedData, policy: StartingPolicy, current: StageRun[RewardArtifact]
) -> tuple[str, dict[str, float]]:
    from datasets import load_from_disk

    from rlhf_lib.data.held_out import share_out
    from rlhf_lib.training.reward_parts import train_reward_parts
    from rlhf_lib.training.supervised import curve

    assert data.preferences is not None
    folder = current.folder / "model"
    pairs, _ = share_out(recipe, load_from_disk(data.preferences.train))
    metrics, logs = train_reward_parts(
        pairs,
        policy.model,
        folder,
        reward=recipe.reward,
        compute=recipe.compute,
        seed=recipe.seed,
        held_out=load_from_disk(data.preferences.test),
        policy=recipe.policy,
        on_log=lambda step, metrics: current.log_metrics({f"train/{k}": v for k, v in metrics.items()}, step),
    )
    for path, log in logs.items():
        drawn = curve(log, "loss", "accuracy", "margin", "validation_loss", "validation_accuracy")
        mlflow.log_figure(drawn, f"{path}/curve.png".lstrip("/"))
    return str(folder), metrics


def _train_classifier(
    recipe: Recipe, data: PreparedData, policy: StartingPolicy, current: StageRun[RewardArtifact]
) -> tuple[str, dict[str, float]]:
    from datasets import load_from_disk

    from rlhf_lib.training.classifier import label_figure, train_classifier
    from rlhf_lib.training.supervised import curve

    assert data.labelled is not None
    assert data.label_names is not None
    folder = current.folder / "model"
    metrics, log, table = train_classifier(
        load_from_disk(data.labelled.train),
        data.label_names,
        folder,
        reward=recipe.reward,
        compute=recipe.compute,
        seed=recipe.seed,
        held_out=load_from_disk(data.labelled.test),
        on_log=lambda step, metrics: current.log_metrics({f"train/{k}": v for k, v in metrics.items()}, step),
    )
    mlflow.log_figure(curve(log, "loss", "learning_rate"), "curve.png")
    mlflow.log_figure(label_figure(table), "labels.png")
    mlflow.log_table({key: [row[key] for row in table] for key in table[0]}, "labels.json")
    return str(folder), metrics


def _normalize(
    recipe: Recipe, queries: list[str], sampled: Responses, columns: Columns, model: str | None, folder: Path
) -> Normalization:
    from rlhf_lib.models.device import pick_device
    from rlhf_lib.rewards import sampled_scores
    from rlhf_lib.rewards.build import build_reward
    from rlhf_lib.rewards.normalization import fit_normalization

    reward = build_reward(recipe.reward, model, pick_device(recipe.compute))
    fitted = fit_normalization(sampled_scores(reward, queries, sampled.texts, sampled.ended, columns))
    fitted.save(folder)
    return Normalization(mean=fitted.mean, std=fitted.std)


def _rows(folders: Folders) -> list[str]:
    from datasets import load_from_disk

    from rlhf_lib.data.sources import fingerprint

    return [fingerprint(load_from_disk(folder)) for folder in (folders.train, folders.test)]
