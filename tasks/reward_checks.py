"""The reward-checks stage: the results are logged and shown in any case, and a failed check stops the run."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from rlhf_lib.recipe import Recipe
from tasks.results import PreparedData, RewardArtifact, RewardChecks
from tasks.stage.keys import REWARD_CHECKS
from tasks.stage.options import OPTIONS
from tasks.stage.run import run_stage
from tasks.tracking.runs import PipelineRun


@task(name="reward_checks", **OPTIONS)
def check_reward_model(recipe: Recipe, run: PipelineRun, data: PreparedData, reward: RewardArtifact) -> RewardChecks:
    """Check the reward on held-out pairs, or without pairs on real texts, or where the data has no answers at all, or
    the reward needs columns that pairs don't have, on the starting policy's, as `rlhf_lib.rewards.checks` says.

    Raises GateFailed after the report is in MLflow and Prefect; no record is kept then, so that a failed gate fails
    again.
    """
    with run_stage(REWARD_CHECKS, run, key=_key(recipe, data, reward)) as s:
        if s.reused:
            return s.result

        import mlflow
        import pandas as pd
        from datasets import load_from_disk

        from rlhf_lib.conversation import prompts_of
        from rlhf_lib.models.device import pick_device
        from rlhf_lib.rewards.build import build_reward
        from rlhf_lib.rewards.check_report import figures, markdown
        from rlhf_lib.rewards.check_texts import real_rows
        from rlhf_lib.rewards.checks import run_checks
        from rlhf_lib.rewards.columns import dataset_columns
        from rlhf_lib.statistics import share_interval

        checks, pairs, texts = recipe.reward.checks, None, None
        columns: dict[str, list[Any]] = {}
        if reward.samples is not None:
            rows = load_from_disk(reward.samples)
            columns = dataset_columns(rows)
            texts = list(zip(prompts_of(rows, "query"), columns.pop("completions"), strict=True))
        elif data.preferences:
            pairs = _pairs(data.preferences.test)
        else:
            texts, columns = real_rows(recipe, checks.pairs)
        report = run_checks(
            build_reward(recipe.reward, reward.model, pick_device(recipe.compute)),
            checks,
            pairs,
            texts,
            calibrated=recipe.reward.kind == "preference",
            sampled=reward.samples is not None,
            training=_pairs(data.preferences.train) if pairs and data.preferences else None,
            transfer=_pairs(data.transfer) if pairs and data.transfer else None,
            columns=columns,
            seed=recipe.seed,
        )

        s.log_metrics(report.metrics)
        drawn = figures(report)
        for name, figure in drawn.items():
            mlflow.log_figure(figure, f"reward_checks/{name}")
        mlflow.log_text(markdown(report, list(drawn)), "reward_checks/report.md")
        mlflow.log_table(pd.DataFrame(report.as_dicts()), "reward_checks/checks.json")
        if report.examples:
            mlflow.log_table(pd.DataFrame(report.examples), "reward_checks/examples.json")
        create_table_artifact(
            report.as_dicts(), key="reward-checks", description=f"{recipe.name}: metrics and thresholds"
        )
        create_markdown_artifact(markdown(report), key="reward-checks-report", description=f"{recipe.name}: the report")
        logger = get_run_logger()
        for check in report.checks:
            if not check.passed:  # the error below names these again: the command line shows that alone
                logger.error("reward check %s", check, extra={"told": True})
        if passed := [check.brief for check in report.checks if check.passed]:
            logger.info("reward checks passed, in full in the report: %s", ", ".join(passed))
        for sentence in report.gates_off:
            logger.warning("%s", sentence)

        report.raise_if_failed()
        accuracy, count = report.accuracy, report.pairs
        if accuracy is None and data.labelled is not None:  # a classifier trained here: on its held-out texts
            accuracy = reward.metrics.get("accuracy/held_out")
            count = len(load_from_disk(data.labelled.test))
        interval = None if accuracy is None else share_interval(accuracy, count)
        if "accuracy_low" in report.metrics:  # wider where prompts have several pairs
            interval = report.metrics["accuracy_low"], report.metrics["accuracy_high"]
        s.finish(
            RewardChecks(
                passed=report.passed,
                accuracy=accuracy,
                ci95=interval,
                held_out=None if accuracy is None else count,
                checks=report.as_dicts(),
                metrics=report.metrics,
            )
        )
    return s.result


def _pairs(folder: str) -> list[tuple[str, str, str]]:
    from datasets import load_from_disk

    from rlhf_lib.conversation import prompts_of

    rows = load_from_disk(folder)
    return list(zip(prompts_of(rows, "prompt"), rows["chosen"], rows["rejected"], strict=True))


def _key(recipe: Recipe, data: PreparedData, reward: RewardArtifact) -> str:
    from datasets import load_from_disk

    from rlhf_lib.data.sources import fingerprint

    training = fingerprint(load_from_disk(data.preferences.train)) if data.preferences else None
    texts = None if data.preferences else [recipe.data.prompts.model_dump(), recipe.generation.model_dump()]
    settings = [recipe.reward.model_dump(mode="json"), recipe.policy.chat_settings]
    samples = reward.stage_key if reward.samples is not None else None
    return REWARD_CHECKS.key(reward.fingerprint, settings, data.fingerprints, texts, samples, recipe.seed, training)
