"""The registration stage: the policy becomes a version in MLflow's model registry, and the champion if it passes the
gates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException
from prefect import task

from rlhf_lib.errors import EnvironmentFault, RLHFError
from rlhf_lib.evaluation.measures import flat_metrics
from rlhf_lib.recipe import Recipe, RewardConfig
from tasks.registry import champions, events, policies, versions
from tasks.registry.model_card import model_card
from tasks.results import (
    EvaluationResult,
    JudgeModels,
    PPOResult,
    PreparedData,
    RegisteredModel,
    RewardArtifact,
    RewardChecks,
    StartingPolicy,
)
from tasks.stage.keys import REGISTRATION, function_source
from tasks.stage.options import OPTIONS
from tasks.stage.run import run_stage
from tasks.tracking import run_logger
from tasks.tracking.run_folder import open_verdicts
from tasks.tracking.runs import PipelineRun, mlflow_link

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel

    from rlhf_lib.rewards import Reward

CHECKED_PROMPTS = 8


@task(name="registration", **OPTIONS)
def register_policy(
    recipe: Recipe,
    run: PipelineRun,
    policy: StartingPolicy,
    reward: RewardArtifact,
    ppo: PPOResult,
    evaluation: EvaluationResult,
    checks: RewardChecks | None = None,
    data: PreparedData | None = None,
    judges: JudgeModels | None = None,
) -> RegisteredModel:
    """Log the policy, compare what MLflow gives back logit by logit, judge it, and only then make it a version.

    `checks` and `data` add the reward model's accuracy and the data's fingerprints to
    the model card. A policy that fails its gates, or loses to the champion, becomes a version all the same, as
    challenger. Raises EnvironmentFault where the model that comes back is not the one that went in.
    """
    from rlhf_lib.data.prompts import held_out_prompts
    from rlhf_lib.evaluation.promotion import judge
    from rlhf_lib.models.loading import fingerprint

    name = recipe.registration.name or recipe.name
    made_from = (ppo.model_dump(mode="json"), evaluation.model_dump(mode="json"))
    key = REGISTRATION.key(recipe.model_dump(mode="json"), *made_from)
    with run_stage(REGISTRATION, run, key=key) as s:
        if s.reused:
            return s.result
        # an attempt that was killed may have got as far as this
        half = next((found for found in versions.versions(name) if found.tags.get("stage_key") == s.key), None)
        prompts = held_out_prompts(policy.prompts.test, recipe)  # the ones that the evaluation drew
        logged = _log_checked(recipe, ppo.policy, prompts, run.parent_run_id)

        present = policies.champion(name)
        crowned = half is not None and present == str(half.version)
        if crowned:
            present = None
        gating = [
            title
            for title, found in evaluation.judges.items()
            if found["only_reports"] is None and not found.get("failed")
        ]
        if recipe.registration.gates.min_judge_delta is None:
            gating = []
        referees = {title: judges.models.get(title) if judges else None for title in gating}
        duel = None
        if present:
            duel = _duel(recipe, run, reward, referees, ppo.policy, name, present, prompts, s.folder)
        passed, gates, reason = judge(recipe.registration.gates, evaluation.model_dump(), duel)
        promoted = passed and recipe.registration.promote
        if passed and not promoted:
            reason += ", but the recipe's registration.promote is false"
        verdict = f"{'Promoted to champion' if promoted else 'Not promoted'}: {reason}."

        card = model_card(
            recipe,
            name=name,
            policy=policy,
            reward=reward,
            ppo=ppo,
            evaluation=evaluation,
            gates=gates,
            verdict=verdict,
            duel=duel,
            fingerprints=data.fingerprints if data else {},
            checks=checks,
            talks=policies.is_chat(logged.flavors["python_function"]["config"]),
            samples=mlflow_link(evaluation.mlflow_run_id or run.parent_run_id),
            pipeline=mlflow_link(run.parent_run_id),
        )
        written = s.folder / "model_card.md"
        written.write_text(card)
        mlflow.log_artifact(str(written))
        mlflow.MlflowClient().log_model_artifact(logged.model_id, str(written))

        metrics = _metrics(evaluation, duel, checks)
        tags = {key: f"{value:.6g}" for key, value in metrics.items()} | {
            "recipe": recipe.name,
            "parent_run_id": run.parent_run_id,
            "stage_key": s.key,
            "base_model_fingerprint": str(policy.fingerprint),
            "reward_fingerprint": str(reward.fingerprint),
            "held_out_prompts": str(evaluation.held_out).lower(),
            "promoted": str(promoted).lower(),
            "reason": reason,
        }
        hub = recipe.policy.train is None and not Path(policy.model).is_dir()
        for kind, source, digest in (
            (versions.REFERENCE, policy.model if hub else ppo.reference, policy.fingerprint),
            (versions.REWARD_MODEL, reward.model, reward.fingerprint),
        ):
            if (kept := versions.keep(kind, source, name, digest)) is not None:
                tags[kind] = kept
        for title, folder in (judges.models if judges else {}).items():
            kind, digest = versions.judge_kind(title), fingerprint(folder)
            if (kept := versions.keep(kind, folder, name, digest)) is not None:
                tags |= {kind: kept, versions.fingerprint_tag(kind): str(digest)}
        if recipe.reward.learned() and data and data.criterion:
            tags["criterion"] = data.criterion
        made = half or policies.create_version(
            name, logged, run_id=run.parent_run_id, about=recipe.description, card=card, tags=tags
        )
        version = str(made.version)
        if promoted and not crowned:
            champions.crown(name, version, "gates", reason)
        elif not promoted:
            unchanged: events.Happened = "waiting" if passed else "refused"
            events.tell(unchanged, name, version, champion=present, why=reason, who=champions.user())
        outcome = {"registered": f"models:/{name}/{version}", "promoted": str(promoted).lower(), "reason": reason}
        mlflow.set_tags(outcome)
        for key, value in outcome.items():
            mlflow.MlflowClient().set_tag(run.parent_run_id, key, value)
        metrics |= {"promoted": float(promoted)}
        s.log_metrics(metrics)
        run_logger().info("registered models:/%s/%s (%s). %s", name, version, mlflow.get_registry_uri(), verdict)
        s.finish(
            RegisteredModel(
                name=name,
                version=version,
                promoted=promoted,
                gates=gates,
                reason=reason,
                duel=duel,
                metrics=metrics,
            )
        )
    return s.result


def _log_checked(recipe: Recipe, folder: str, prompts: Dataset, run_id: str) -> Any:
    """Log the policy's folder as the pipeline run's model, and hold what MLflow loads back against it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from rlhf_lib.conversation import user
    from rlhf_lib.models.loading import load_config, load_tokenizer, positions
    from rlhf_lib.ppo.rollout import end_ids

    seq2seq = bool(load_config(folder, recipe.policy.trust_remote_code).is_encoder_decoder)
    auto: Any = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    model = auto.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=recipe.policy.trust_remote_code
    ).eval()
    tokenizer = load_tokenizer(folder, recipe.policy.trust_remote_code)
    example, talks = policies.question(prompts[0]["query"]), tokenizer.chat_template is not None
    settings: dict[str, Any] = {
        "max_new_tokens": recipe.generation.response_limit,
        "positions": positions(model.config),
        "end_ids": [] if recipe.generation.ignore_eos else sorted(end_ids(model, tokenizer)),
        "stop": recipe.generation.stop,
        "trust_remote_code": recipe.policy.trust_remote_code,
    }
    if talks:
        name = recipe.registration.name or recipe.name
        settings |= {"system": recipe.policy.system, "name": name, "example": [user(example)]}
    else:
        settings |= {"seq2seq": seq2seq, "example": example, **policies.form(recipe)}
    logged = policies.log_policy(
        folder,
        settings=settings,
        params={"recipe": recipe.name, "base_model": recipe.policy.model or "from scratch", "seed": recipe.seed},
        run_id=run_id,
    )
    served = mlflow.pyfunc.load_model(logged.model_uri).unwrap_python_model()
    prompt_ids = [ids[: settings["positions"]] for ids in prompts[:CHECKED_PROMPTS]["input_ids"]]
    difference = largest_difference(model, served.model, prompt_ids)
    if difference != 0:
        raise EnvironmentFault(
            f"the policy loaded back from MLflow has different logits from {folder} (by up to {difference:.3g}), so it "
            f"was not registered: check the artifact store of {mlflow.get_tracking_uri()} and run again"
        )
    return logged


def largest_difference(model: PreTrainedModel, other: PreTrainedModel, prompt_ids: list[list[int]]) -> float:
    """Largest absolute difference of two models' logits over the prompts, each alone in fp32: 0.0 only if they are
    equal bit by bit, inf if one of them has a logit that isn't finite or another vocabulary. A seq2seq model's decoder
    is given the prompt too."""
    import torch

    largest = 0.0
    model = model.to(other.device)  # type: ignore[arg-type]
    with torch.no_grad():
        for ids in prompt_ids:
            tokens = torch.tensor([ids], device=other.device)
            given = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {})
            ours, theirs = model(**given).logits.float(), other(**given).logits.float()
            if not torch.equal(ours, theirs):
                comparable = ours.shape == theirs.shape and torch.isfinite(ours - theirs).all()
                largest = max(largest, float((ours - theirs).abs().max()) if comparable else float("inf"))
    return largest


def _duel(
    recipe: Recipe,
    run: PipelineRun,
    reward: RewardArtifact,
    judges: Mapping[str, str | None],
    candidate: str,
    name: str,
    version: str,
    prompts: Dataset,
    folder: Path,
) -> dict[str, Any]:
    """Candidate against champion, under the reward of either and the `judges` (where each was trained, by name); a
    champion that can't be compared keeps its place and doesn't stop the run."""
    from rlhf_lib.evaluation.opinions import build_judge
    from rlhf_lib.evaluation.promotion import compare_policies
    from rlhf_lib.models.device import pick_device, pick_dtype
    from rlhf_lib.rewards.build import build_reward

    device = pick_device(recipe.compute)
    scorer = build_reward(recipe.reward, reward.model, device)
    theirs, missing = _champion_reward(recipe, reward, name, version, device)
    try:
        outcome = compare_policies(
            candidate,
            policies.resolve_model(f"models:/{name}/{version}"),
            prompts,
            scorer,
            recipe.generation,
            device=device,
            dtype=pick_dtype(recipe.compute, device),
            seed=recipe.seed,
            policy=recipe.policy,
            champion_reward=theirs,
            judges={
                title: partial(
                    build_judge,
                    title,
                    recipe.evaluation.judges[title],
                    folder,
                    device,
                    verdicts=partial(open_verdicts, run.run_dir),
                    run=run.parent_run_id,
                )
                for title, folder in judges.items()
            },
        )
    except (RLHFError, MlflowException) as error:
        run_logger().warning("champion %s version %s can't be compared with: %s", name, version, error)
        return {"version": version, "error": str(error)}
    if missing is not None:
        run_logger().warning("the duel is under this policy's reward alone: %s", missing)
        outcome["champion_reward"] = {"error": missing}
    (folder / "duel.json").write_text(json.dumps(outcome | {"version": version}, indent=1))
    mlflow.log_artifact(str(folder / "duel.json"))
    return outcome | {"version": version}


def _champion_reward(
    recipe: Recipe, reward: RewardArtifact, name: str, number: str, device: torch.device
) -> tuple[Reward | None, str | None]:
    """(the reward that the champion was trained for, why it can't be had); neither where it is the candidate's own."""
    from rlhf_lib.rewards.build import build_reward, check_reward

    version = versions.version_of(f"models:/{name}/{number}")
    known = version.tags.get("reward_fingerprint")
    try:
        theirs, model = versions.reward_of(version)
        if known == str(reward.fingerprint) and _scoring(theirs) == _scoring(recipe.reward):
            return None, None
        if theirs.kind == "function":
            check_reward(theirs)
            if function_source(theirs.function or "", "reward.function") != known:
                return None, f"the champion's reward.function {theirs.function} has changed since it was trained"
        return build_reward(theirs, model, device), None
    except (RLHFError, MlflowException) as error:
        return None, str(error)


def _scoring(reward: RewardConfig) -> dict[str, Any]:
    """What of the section decides a score, beside the model's weights."""
    return reward.model_dump(
        include={"kind", "label", "output", "function", "terms", "combine", "uncertainty_weight", "max_length"}
    )


def _metrics(
    evaluation: EvaluationResult, duel: Mapping[str, Any] | None, checks: RewardChecks | None
) -> dict[str, float]:
    """The headline metrics of a version, flat; those that don't apply are left out."""
    tree: dict[str, Any] = {
        "reward": evaluation.reward,
        "diversity": evaluation.diversity,
        "kl": evaluation.kl,
        "perplexity": evaluation.perplexity or {},
        "answer_perplexity": evaluation.answer_perplexity or {},
        "reward_model": checks.model_dump(include={"accuracy", "ci95", "held_out"}) if checks else {},
        "evaluation": evaluation.measured,
        "judge": evaluation.judges,
        "lm_eval": evaluation.lm_eval,
    }
    if duel and "error" not in duel:
        tree["duel"] = {
            key: duel[key] for key in ("candidate", "champion", "delta", "ci95", "win_rate", "prompts", "judges")
        }
        if "error" not in (theirs := duel.get("champion_reward") or {"error": ""}):
            tree["duel"]["champion_reward"] = theirs
    return flat_metrics(tree)
