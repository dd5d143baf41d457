"""The evaluation stage: reference against policy on the evaluation prompts, and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.logging import get_run_logger

from rlhf_lib.errors import JudgeFailed
from rlhf_lib.recipe import Recipe
from tasks.results import (
    EvaluationResult,
    JudgeModels,
    PPOResult,
    PreparedData,
    RewardArtifact,
    StartingPolicy,
    TrainedBaseline,
)
from tasks.stage.keys import EVALUATION, function_source, judge_fingerprint
from tasks.stage.options import OPTIONS
from tasks.stage.run import run_stage
from tasks.tracking.reports import publish
from tasks.tracking.run_folder import open_verdicts
from tasks.tracking.runs import PipelineRun

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlhf_lib.evaluation.baselines import Baselines
    from rlhf_lib.evaluation.opinions import Judge
    from rlhf_lib.evaluation.results import BeforeAfter, Scored
    from rlhf_lib.rewards import Reward


@task(name="evaluation", **OPTIONS)
def evaluate_policy(
    recipe: Recipe,
    run: PipelineRun,
    policy: StartingPolicy,
    reward: RewardArtifact,
    ppo: PPOResult,
    data: PreparedData | None = None,
    judges: JudgeModels | None = None,
    sft_on_chosen: TrainedBaseline | None = None,
) -> EvaluationResult:
    """Evaluate and log: metrics, the before/after table, histograms, an HTML and a Markdown report, which tells what
    `data` lost and leaks. `judges`: those trained here. The baselines beside the two: best-of-n, and SFT on chosen
    answers, trained or the reference itself."""
    import mlflow
    from datasets import load_from_disk

    from rlhf_lib.conversation import prompts_of
    from rlhf_lib.data.corpus import load_texts, split_answers
    from rlhf_lib.data.losses import data_losses, training_losses
    from rlhf_lib.data.prompts import held_out_prompts
    from rlhf_lib.evaluation import plots
    from rlhf_lib.evaluation.compare import compare_policy
    from rlhf_lib.evaluation.harness import measure_tasks
    from rlhf_lib.evaluation.judges import judge_policy
    from rlhf_lib.evaluation.measures import flat_metrics
    from rlhf_lib.evaluation.metrics import measure_both, metric_changes
    from rlhf_lib.evaluation.opinions import scorers
    from rlhf_lib.evaluation.overoptimization import Course
    from rlhf_lib.evaluation.overoptimization_plot import overoptimization
    from rlhf_lib.evaluation.perplexity import measure_perplexity
    from rlhf_lib.evaluation.phrases import phrases_behind_gain
    from rlhf_lib.evaluation.probes import ProbeResult, next_token_differences
    from rlhf_lib.evaluation.report import build_report, how_sampled
    from rlhf_lib.evaluation.results import SFT_ON_CHOSEN, Scored
    from rlhf_lib.models.chat import policy_tokenizer
    from rlhf_lib.models.device import pick_device, pick_dtype
    from rlhf_lib.models.loading import load_config, load_policy
    from rlhf_lib.models.policy import autocast
    from rlhf_lib.ppo.evaluation import import_metrics, metric_columns
    from rlhf_lib.rewards import timeouts
    from rlhf_lib.rewards.build import build_reward
    from rlhf_lib.rewards.check_result import gates_off
    from rlhf_lib.rewards.columns import dataset_columns
    from rlhf_lib.statistics import SMALL_SAMPLE

    logger = get_run_logger()
    wanted = recipe.evaluation.perplexity
    remote = recipe.policy.trust_remote_code
    tokenizer = policy_tokenizer(recipe.policy, ppo.policy)
    texts: list[str] = []
    given: list[str] | None = None
    if wanted:
        prompt_settings = recipe.data.prompts
        seq2seq = load_config(ppo.policy, remote).is_encoder_decoder
        texts, given = load_texts(
            wanted,
            default=prompt_settings.dataset,
            seed=recipe.seed,
            prompts=prompt_settings if seq2seq else None,
            chat=recipe.policy if tokenizer.chat_template is not None else None,
        )
    settings = recipe.model_dump(mode="json", exclude={"registration", "about", "description"})
    measured = [function_source(path, "evaluation.metrics") for path in recipe.evaluation.metrics]
    trained = judges.models if judges else {}
    asked_judges = {
        name: judge_fingerprint(judge, trained.get(name)) for name, judge in recipe.evaluation.judges.items()
    }
    chosen = sft_on_chosen.fingerprint if sft_on_chosen else None
    inputs = (ppo.model_dump(mode="json"), reward.fingerprint, texts, given, measured, asked_judges, chosen)
    key = EVALUATION.key(settings, *inputs)
    with run_stage(EVALUATION, run, key=key) as s:
        if s.reused:
            return s.result
        prompts = held_out_prompts(policy.prompts.test, recipe)

        device = pick_device(recipe.compute)
        dtype = pick_dtype(recipe.compute, device)
        models: dict[str, Any] = {}
        for name, folder in (("reference", ppo.reference), ("policy", ppo.policy)):
            models[name] = load_policy(folder, trust_remote_code=remote).to(device)  # type: ignore[arg-type]

        def load_baseline() -> PreTrainedModel:
            assert sft_on_chosen is not None
            model: PreTrainedModel = load_policy(sft_on_chosen.model, trust_remote_code=remote)
            return model.to(device)  # type: ignore

        logger.info("evaluation: %d prompts, %d texts for perplexity", len(prompts), len(texts))
        score = build_reward(recipe.reward, reward.model, device)
        comparison = compare_policy(
            models["reference"],
            models["policy"],
            tokenizer,
            score,
            prompts_of(prompts, "query"),
            list(prompts["input_ids"]),
            recipe.generation,
            dtype=dtype,
            seed=recipe.seed,
            held_out=not recipe.data.prompts.unheld,
            micro_batch_tokens=recipe.ppo.micro_batch_tokens,
            baselines={SFT_ON_CHOSEN: load_baseline} if sft_on_chosen else None,
            columns=dataset_columns(prompts),
        )
        metrics = comparison.metrics()
        if comparison.caveat:
            logger.warning("evaluation: %s", comparison.caveat)
        own = measure_both(import_metrics(recipe.evaluation.metrics), comparison, tokenizer)
        changes = metric_changes(*own, comparison.queries, seed=recipe.seed)
        metrics |= flat_metrics({"evaluation": {change.key: change.record for change in changes}})
        pairs = load_from_disk(data.preferences.test) if data and data.preferences else None
        referees = _judges(recipe, trained, device, run)
        judged, opinions = judge_policy(recipe, comparison, referees, pairs)
        metrics |= flat_metrics({"judge": {judgement.name: judgement.record for judgement in judged}})
        for judgement in judged:
            logger.info(judgement.told(comparison.reward))

        scoring = scorers(referees)
        told = {name: [score for score in opinions[f"judge/{name}_after"] if score is not None] for name in scoring}
        scored = Scored(comparison.policy.scores, told)
        baselines = _baselines(
            recipe, models["reference"], tokenizer, score, prompts, comparison, dtype, scoring, scored
        )
        metrics |= flat_metrics(baselines.metrics)
        over = timeouts(score)
        for sentence in [*([baselines.same_kl.answer] if baselines.same_kl else []), *baselines.told()]:
            logger.info("evaluation: %s", sentence)

        perplexity = answer_perplexity = counts = None
        losses = [*(data_losses(data.report) if data else []), *training_losses(policy.metrics, reward.metrics)]
        notes = [f"Data: {loss}." for loss in losses] + [how_sampled(recipe)]
        notes += judges.notes if judges else []
        if over is not None:
            metrics["reward/timeouts"] = over
        if over:
            notes.append(f"The isolated reward function couldn't score {over:,} of the answers within its limits.")
        if len(prompts) < SMALL_SAMPLE:
            notes.append(f"Only {len(prompts)} prompts: others could give quite different figures.")
        if wanted:

            def measure(texts: list[str], prompts: list[str] | None) -> dict[str, Any]:
                with autocast(device, dtype):
                    return {
                        name: measure_perplexity(wanted, model, tokenizer, texts, prompts)
                        for name, model in models.items()
                    }

            perplexities = measure(texts, given)
            perplexity = perplexity_record(perplexities)
            if given is not None:  # these texts are answers
                answer_perplexity = perplexity
            elif (apart := split_answers(texts, recipe.data.prompts, tokenizer, recipe.seed)) is not None:
                answer_perplexity = perplexity_record(measure(*apart))
                notes.append(f"Perplexity of answers: those in {len(apart[0]):,} of these texts, given their prompts.")
            found = perplexities["policy"]  # the same for both: one tokenizer, one architecture
            counts = {"texts": len(texts)} | {key: found[key] for key in ("tokens", "truncated", "skipped", "rule")}
            metrics |= {f"perplexity/{name}": value for name, value in perplexity.items()}
            metrics |= {f"answer_perplexity/{name}": value for name, value in (answer_perplexity or {}).items()}
            metrics |= {f"perplexity/{name}": counts[name] for name in ("texts", "tokens", "truncated", "skipped")}
            start = f"{'with' if wanted.add_start_token else 'without'} a start token"
            notes.append(
                f"Perplexity of {len(texts):,} texts (column {wanted.column}, split {wanted.split}), "
                f"{counts['tokens']:,} tokens scored, {start if given is None else 'given their prompts'}: "
                f"{counts['rule']} (cut: {counts['truncated']:,}; without a token to score: {counts['skipped']:,})."
            )

        tasks = recipe.evaluation.lm_eval
        kept = measure_tasks(models, tokenizer, tasks, dtype=dtype, seed=recipe.seed) if tasks else []
        metrics |= flat_metrics({"lm_eval": {found.name: found.record for found in kept}})

        asked = recipe.evaluation.probes
        with autocast(device, dtype):
            answers = {name: next_token_differences(model, tokenizer, asked) for name, model in models.items()}
        probes = [
            ProbeResult(probe.prompt, probe.token, probe.against, reference=before, policy=after)
            for probe, before, after in zip(asked, answers["reference"], answers["policy"], strict=True)
        ]
        for i, probe in enumerate(probes, start=1):
            metrics |= {f"probes/{i}/reference": probe.reference, f"probes/{i}/policy": probe.policy}

        before, after = comparison.reference, comparison.policy
        phrases = phrases_behind_gain(
            before.texts, after.texts, comparison.deltas, prompts=comparison.queries, seed=recipe.seed
        )
        metrics |= phrases.metrics
        warnings = [{"kind": "phrases", "message": phrases.warning}] if phrases.warning else []
        for warning in warnings:
            logger.warning("evaluation: %s", warning["message"])
        drawings = {
            "scores": plots.score_histogram(before.scores, after.scores),
            "gains": plots.delta_histogram(comparison.deltas, comparison.reward.ci95, comparison.reward.prompts),
            "lengths": plots.length_histogram(before.lengths, after.lengths),
        }
        if baselines.best:
            drawings["baselines"] = plots.baseline_curve(baselines)
        course = Course.of(ppo.evaluations, ppo.kept_step or ppo.steps, ppo.evaluated_on or "", ppo.stopped)
        if course:
            drawings["overoptimization"] = overoptimization(course, baselines.best, comparison, judged)
        if probes:
            drawings["probes"] = plots.probe_chart(probes)
            mlflow.log_dict({"probes": [asdict(probe) for probe in probes]}, "probes.json")
        report = build_report(
            f"Evaluation of {recipe.name}",
            comparison,
            perplexity,
            notes,
            probes=probes,
            metrics=changes,
            judges=judged,
            warnings=[
                *gates_off(recipe.reward.checks),
                *(warning["message"] for warning in [*ppo.warnings, *warnings]),
            ],
            phrases=phrases,
            answer_perplexity=answer_perplexity,
            baselines=baselines,
            tasks=kept,
            course=course,
            seed=recipe.seed,
        )
        s.log_metrics(metrics)
        mlflow.set_tag("held_out_prompts", str(comparison.comparison.held_out).lower())
        table = comparison.table()
        for when, values in zip(("before", "after"), own, strict=True):
            table |= {f"{name}_{when}": column for name, column in metric_columns(values).items()}
        table |= opinions
        mlflow.log_table(table, "before_after.json")
        page = publish(report, drawings, s.folder, key="evaluation", description=f"{recipe.name}: before and after")
        s.finish(
            EvaluationResult(
                reward=comparison.reward.record,
                perplexity=perplexity,
                perplexity_counts=counts,
                answer_perplexity=answer_perplexity,
                trained_on="answers" if recipe.policy.train and recipe.policy.train.completion_only else "texts",
                diversity=comparison.diversity,
                measured={change.key: change.record for change in changes},
                judges={judgement.name: judgement.record for judgement in judged},
                lm_eval={found.name: found.record for found in kept},
                phrases=phrases.record,
                warnings=warnings,
                baselines=baselines.record,
                kl=comparison.kl,
                report=str(page),
                prompts=len(comparison.queries),
                distinct_prompts=comparison.comparison.distinct,
                held_out=not recipe.data.prompts.unheld,
                metrics={name: value for name, value in metrics.items() if value is not None},
            )
        )
    return s.result


def perplexity_record(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`reference`, `policy`, `mean_per_text_reference` and `mean_per_text_policy`, from what was measured of each."""
    return {name: result["perplexity"] for name, result in measured.items()} | {
        f"mean_per_text_{name}": result["mean_perplexity"] for name, result in measured.items()
    }


def _judges(
    recipe: Recipe, trained: Mapping[str, str], device: torch.device, run: PipelineRun
) -> dict[str, Judge | JudgeFailed]:
    """By name; for a language model that can't be had, why."""
    from rlhf_lib.evaluation.opinions import build_judge

    found: dict[str, Judge | JudgeFailed] = {}
    for name, judge in recipe.evaluation.judges.items():
        verdicts = partial(open_verdicts, run.run_dir)
        try:
            found[name] = build_judge(name, judge, trained.get(name), device, verdicts=verdicts, run=run.parent_run_id)
        except JudgeFailed as error:
            found[name] = error
    return found


def _baselines(
    recipe: Recipe,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    prompts: Dataset,
    comparison: BeforeAfter,
    dtype: torch.dtype,
    judges: Mapping[str, Reward],
    policy: Scored,
) -> Baselines:
    """What cheaper methods than PPO get on the evaluation's prompts, by the reward and by each of the judges that
    score one answer alone, beside the scores of PPO's `policy`; best-of-n takes a prompt that is asked repeatedly
    once."""
    from rlhf_lib.conversation import prompts_of
    from rlhf_lib.evaluation.baselines import Baselines, at_same_kl, trained_baselines
    from rlhf_lib.evaluation.best_of_n import sample_best_of_n
    from rlhf_lib.rewards.columns import dataset_columns, taken

    itself = recipe.evaluation.sft_on_chosen and recipe.learns_from == "chosen"
    others = trained_baselines(comparison, chosen=itself, judges=judges, policy=policy)
    if not recipe.evaluation.best_of:
        return Baselines(others=others)
    queries = prompts_of(prompts, "query")
    first = {query: row for row, query in reversed(list(enumerate(queries)))}
    rows = sorted(first.values())[: recipe.evaluation.best_of_prompts]
    reached = policy.at(rows)
    best = sample_best_of_n(
        reference,
        tokenizer,
        reward,
        [queries[row] for row in rows],
        [prompts[row]["input_ids"] for row in rows],
        recipe.generation,
        samples=recipe.evaluation.best_of,
        dtype=dtype,
        seed=recipe.seed,
        judges=judges,
        policy=reached,
        columns=taken(dataset_columns(prompts), rows),
    )
    return Baselines(best, at_same_kl(best, reached.reward, comparison.kl, recipe.seed), others)
