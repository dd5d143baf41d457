"""A baseline for PPO: the base model trained on the chosen answers alone."""

from __future__ import annotations

import mlflow
from prefect import task

from rlhf_lib.recipe import Recipe
from tasks.results import PreparedData, StartingPolicy, TrainedBaseline
from tasks.stage.keys import SFT_ON_CHOSEN
from tasks.stage.options import OPTIONS
from tasks.stage.run import run_stage
from tasks.tracking.runs import PipelineRun


@task(name="sft_on_chosen", **OPTIONS)
def train_on_chosen(recipe: Recipe, run: PipelineRun, data: PreparedData, policy: StartingPolicy) -> TrainedBaseline:
    """Train what `policy.train` describes once more, on the chosen answers only: as many answers as the reference
    learned from, chosen and rejected together, with its tokenizer and, from scratch, its first weights."""
    from datasets import load_from_disk

    from rlhf_lib.data.sources import fingerprint as rows_fingerprint
    from rlhf_lib.models.device import pick_device, pick_dtype
    from rlhf_lib.models.loading import fingerprint

    assert recipe.policy.train is not None, "only for recipes that train on both answers"
    assert data.preferences is not None, "only for recipes with pairs"
    settings = recipe.policy.train.model_copy(update={"answers": "chosen", "epochs": 2 * recipe.policy.train.epochs})
    given = recipe.policy.model
    rows, held_out = (load_from_disk(folder) for folder in (data.preferences.train, data.preferences.test))
    device = pick_device(recipe.compute)
    key = SFT_ON_CHOSEN.key(
        [settings.model_dump(mode="json"), recipe.policy.lora and recipe.policy.lora.model_dump(mode="json")],
        [policy.fingerprint, fingerprint(given) if given else None, recipe.policy.chat_settings],
        [rows_fingerprint(rows), rows_fingerprint(held_out)],
        [recipe.seed, device.type, str(pick_dtype(recipe.compute, device))],
    )
    with run_stage(SFT_ON_CHOSEN, run, key=key) as current:
        if current.reused:
            return current.result
        from rlhf_lib.models.loading import load_tokenizer
        from rlhf_lib.training import sft  # with TRL's trainers, which take seconds to import
        from rlhf_lib.training.supervised import curve

        mlflow.log_params(settings.model_dump(mode="json"))
        folder = current.folder / "model"
        metrics, log = sft.train_base_model(
            rows,
            folder,
            train=settings,
            compute=recipe.compute,
            seed=recipe.seed,
            model=given,
            tokenizer=load_tokenizer(policy.model, recipe.policy.trust_remote_code),
            lora=recipe.policy.lora if given else None,
            held_out=held_out,
            trust_remote_code=recipe.policy.trust_remote_code,
            on_log=lambda step, metrics: current.log_metrics({f"train/{k}": v for k, v in metrics.items()}, step),
        )
        current.log_metrics(metrics)
        mlflow.log_figure(curve(log, "loss", "mean_token_accuracy", "learning_rate"), "curve.png")
        current.finish(TrainedBaseline(model=str(folder), fingerprint=fingerprint(str(folder)), metrics=metrics))
    return current.result
