"""The base-model stage: a tokenizer if needed, the prompts in its tokens, and SFT."""

from __future__ import annotations

from typing import Any

import mlflow
from prefect import task

from rlhf_lib.recipe import Recipe
from tasks.results import Folders, PreparedData, StartingPolicy
from tasks.stage.keys import BASE_MODEL
from tasks.stage.options import OPTIONS
from tasks.stage.run import run_stage
from tasks.tracking import tell_losses
from tasks.tracking.runs import PipelineRun


@task(name="base_model", **OPTIONS)
def train_base_model(recipe: Recipe, run: PipelineRun, data: PreparedData) -> StartingPolicy:
    """Train the base model that `policy.train` describes.

    The prompts are tokenized first, so that prompts that don't fit stop the run before any training.
    """
    from datasets import load_from_disk

    from rlhf_lib.data.losses import training_losses
    from rlhf_lib.data.prompt_tokens import tokenize_splits
    from rlhf_lib.data.sources import fingerprint as rows_fingerprint
    from rlhf_lib.models.chat import set_template
    from rlhf_lib.models.device import pick_device, pick_dtype
    from rlhf_lib.models.loading import fingerprint, load_config, load_tokenizer, positions

    settings, given = recipe.policy.train, recipe.policy.model
    assert settings is not None, "only for recipes with policy.train"
    learned = data.corpus or data.preferences
    assert learned is not None, "the recipe requires a corpus or pairs here"
    rows, texts = (
        {"train": load_from_disk(folders.train), "test": load_from_disk(folders.test)}
        for folders in (learned, data.texts)
    )
    device = pick_device(recipe.compute)
    key = BASE_MODEL.key(
        recipe.policy.model_dump(mode="json", include={"train", "lora"}) | recipe.policy.chat_settings,
        recipe.data.prompts.model_dump(mode="json", include={"query", "template", "max_query_chars"}),
        recipe.generation.model_dump(mode="json", include={"max_new_tokens", "length_sampler"}),
        fingerprint(given) if given else None,
        [rows_fingerprint(part) for part in (*rows.values(), *texts.values())],
        [recipe.seed, device.type, str(pick_dtype(recipe.compute, device))],
    )
    with run_stage(BASE_MODEL, run, key=key) as current:
        if current.reused:
            tell_losses("base_model", training_losses(current.result.metrics, {}))
            return current.result
        from rlhf_lib.training import scratch, sft  # with TRL's trainers, which take seconds to import
        from rlhf_lib.training.supervised import curve

        mlflow.log_params(settings.model_dump(mode="json"))
        if settings.from_scratch is not None:
            size = settings.from_scratch
            corpus = (
                text for row in rows["train"] for text in (row["prompt"] + row["chosen"], row.get("rejected")) if text
            )
            tokenizer: Any = scratch.train_tokenizer(
                corpus, size.vocab_size, size.positions, append_eos=size.architecture == "t5"
            )
            longest = size.positions
        else:
            assert given is not None, "the recipe requires a model here"
            tokenizer = load_tokenizer(given, recipe.policy.trust_remote_code)
            longest = positions(load_config(given, recipe.policy.trust_remote_code))
        set_template(tokenizer, recipe.policy)
        train, test, counts = tokenize_splits(texts["train"], texts["test"], recipe, tokenizer, longest)
        prompts = {"train": current.folder / "prompts" / "train", "test": current.folder / "prompts" / "test"}
        train.save_to_disk(prompts["train"])
        test.save_to_disk(prompts["test"])

        folder = current.folder / "model"
        metrics, log = sft.train_base_model(
            rows["train"],
            folder,
            train=settings,
            compute=recipe.compute,
            seed=recipe.seed,
            model=given,
            tokenizer=tokenizer,
            lora=recipe.policy.lora if given else None,
            held_out=rows["test"],
            trust_remote_code=recipe.policy.trust_remote_code,
            on_log=lambda step, metrics: current.log_metrics({f"train/{k}": v for k, v in metrics.items()}, step),
        )
        metrics |= {
            f"prompts/{split}/{name.replace(' ', '_')}": float(count)
            for split, found in counts.items()
            for name, count in found.items()
        }
        current.log_metrics(metrics)
        tell_losses("base_model", training_losses(metrics, {}))
        mlflow.log_figure(curve(log, "loss", "mean_token_accuracy", "learning_rate"), "curve.png")
        current.finish(
            StartingPolicy(
                model=str(folder),
                fingerprint=fingerprint(str(folder)),
                prompts=Folders(train=str(prompts["train"]), test=str(prompts["test"])),
                metrics=metrics,
            )
        )
    return current.result


def given_policy(recipe: Recipe, data: PreparedData) -> StartingPolicy:
    """The policy of a recipe that trains no base model: what `policy.model` names, and the prompts in its tokens."""
    assert recipe.policy.model is not None, "the recipe requires a model here"
    assert data.prompts is not None, "prompts are tokenized where the tokenizer is known"
    return StartingPolicy(model=recipe.policy.model, fingerprint=data.policy_fingerprint, prompts=data.prompts)
