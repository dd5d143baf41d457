"""What a stage returns: one small, frozen model each, of paths and metrics, never a module or a tensor.

The same JSON is the stage's `record.json`. A metric that doesn't apply is null, never 0.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Folders(BaseModel):
    """Data sets on disk."""

    model_config = ConfigDict(frozen=True)

    train: str
    test: str


class StageResult(BaseModel):
    """What every stage's result has: its MLflow run, its folder and key, and the metrics that it logged."""

    model_config = ConfigDict(frozen=True)

    mlflow_run_id: str = ""
    folder: str = ""
    stage_key: str = ""
    metrics: dict[str, float] = {}


class PreparedData(StageResult):
    prompts: Folders | None  # tokenized; null while the tokenizer is still to be trained
    texts: Folders  # the prompts without their ids
    preferences: Folders | None
    corpus: Folders | None
    labelled: Folders | None
    label_names: list[str] | None
    criterion: str | None  # of human rankings
    fingerprints: dict[str, str]  # of the data sets' content, by role
    policy_fingerprint: str | None
    report: dict[str, Any]  # what the filters kept and dropped


class StartingPolicy(StageResult):
    """The model that PPO starts from, given or trained here, and the prompts in its tokens."""

    model: str  # hub id or folder
    fingerprint: str | None
    prompts: Folders


class Normalization(BaseModel):
    """Mean and standard deviation of raw scores on the reference policy's samples."""

    model_config = ConfigDict(frozen=True)

    mean: float
    std: float


class RewardArtifact(StageResult):
    model: str | None  # hub id or folder; null for a function
    fingerprint: str | None
    normalization: Normalization | None


class RewardChecks(StageResult):
    passed: bool
    accuracy: float | None  # held out; null for a reward with neither pairs nor labels
    checks: list[dict[str, Any]]


class PPOResult(StageResult):
    policy: str  # folders
    reference: str
    steps: int
    seconds: float
    kl: float  # nats per response, over the last steps


class EvaluationResult(StageResult):
    reward: dict[str, Any]
    perplexity: dict[str, float | None] | None  # null without a set
    perplexity_counts: dict[str, Any] | None
    diversity: dict[str, float | None]
    measured: dict[str, dict[str, Any]] = {}  # by evaluation.metrics: reference, policy, delta, ci95
    kl: float  # nats per response
    report: str  # the page's path


class RegisteredModel(StageResult):
    name: str
    version: str
    promoted: bool
    gates: list[dict[str, Any]]
    reason: str
    duel: dict[str, Any] | None


def run_record(
    recipe: str, run_id: str, checks: RewardChecks, ppo: PPOResult, evaluation: EvaluationResult, model: RegisteredModel
) -> dict[str, Any]:
    """The record that every run ends with, in JSON: a metric that doesn't apply is null, never 0."""
    diversity = evaluation.diversity
    return {
        "recipe": recipe,
        "mlflow_run_id": run_id,
        "model": {"name": model.name, "version": model.version, "promoted": model.promoted},
        "reward_model": {"accuracy": checks.accuracy, "checks_passed": checks.passed},
        "ppo": {"steps": ppo.steps, "seconds": ppo.seconds, "kl": evaluation.kl},
        "reward": evaluation.reward,
        "perplexity": evaluation.perplexity,
        "diversity": {key: diversity[key] for key in ("distinct_2_reference", "distinct_2_policy")},
        "metrics": evaluation.measured or None,
    }
