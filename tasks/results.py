"""What a stage returns: one small, frozen model each, of paths and metrics, never a module or a tensor.

The same JSON is the stage's `record.json`. A metric that doesn't apply is null, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from rlhf_lib.recipe.learning import JUDGE


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

    @property
    def made(self) -> str | None:
        """Where the thing lies that the stage made: a path, hub id or registry URI."""
        return self.folder or None

    @property
    def about(self) -> str:
        """What it made, in a few words."""
        return ""


class PreparedData(StageResult):
    prompts: Folders | None  # tokenized; null while the tokenizer is still to be trained
    texts: Folders  # the prompts without their ids
    preferences: Folders | None
    transfer: str | None = None  # test pairs of another kind
    corpus: Folders | None
    labelled: Folders | None
    label_names: list[str] | None
    criterion: str | None  # of human rankings
    fingerprints: dict[str, str]  # of the data sets' content, by role
    policy_fingerprint: str | None
    report: dict[str, Any]  # what the filters kept and dropped

    @property
    def about(self) -> str:
        counts = {kind: _used(self.report[kind]["train"]) for kind in ("prompts", *_ROWS) if kind in self.report}
        return ", ".join(f"{count:,} {_ROWS.get(kind, kind)}" for kind, count in counts.items())


def _used(funnel: Mapping[str, Any]) -> int:
    """Rows that are trained on: those that the filters kept, as often as their set's weight says."""
    sets = funnel.get("sets", {}).values()
    return sum(found["taken"] for found in sets) if sets else int(funnel["kept"])


_ROWS = {"preferences": "preference pairs", "corpus": "texts", "labelled": "labelled texts"}


class StartingPolicy(StageResult):
    """The model that PPO starts from, given or trained here, and the prompts in its tokens."""

    model: str  # hub id or folder
    fingerprint: str | None
    prompts: Folders

    @property
    def made(self) -> str:
        return self.model

    @property
    def about(self) -> str:
        if not self.folder:
            return "not trained: policy.train is null"
        return f"trained{_figure(self.metrics, 'loss/held_out', 'held-out loss')}"


class Normalization(BaseModel):
    """Mean and standard deviation of raw scores on the reference policy's samples."""

    model_config = ConfigDict(frozen=True)

    mean: float
    std: float


class RewardArtifact(StageResult):
    model: str | None  # hub id or folder, of a sum with what its terms have of their own; null for a function
    fingerprint: str | None
    normalization: Normalization | None
    samples: str | None = None  # the reference policy's responses, where the data has none to check the reward on

    @property
    def made(self) -> str | None:
        return self.model

    @property
    def about(self) -> str:
        trained = self.model is not None and self.model.startswith(self.folder)
        if not trained:
            return "nothing to train here"
        return f"trained{_figure(self.metrics, 'accuracy/held_out', 'held-out accuracy')}"


class RewardChecks(StageResult):
    passed: bool
    accuracy: float | None  # held out; null for a reward with neither pairs nor labels
    ci95: tuple[float, float] | None = None  # of the accuracy; null for a handful of examples
    held_out: int | None = None  # pairs, or labelled texts, that the accuracy is taken over
    checks: list[dict[str, Any]]

    @property
    def about(self) -> str:
        return f"{sum(check['passed'] for check in self.checks)} of {len(self.checks)} checks passed"


class JudgeModels(StageResult):
    """The judges of which something is made here, by name."""

    models: dict[str, str] = {}  # folders
    pairs: dict[str, int] = {}  # how many each of those trained here was trained on
    left: int = 0  # pairs for the reward model

    @property
    def about(self) -> str:
        return "; ".join(
            f"{name} {'trained' if name in self.pairs else 'put on one scale'}"
            f"{_figure(self.metrics, f'{name}/accuracy/held_out', 'held-out accuracy')}"
            for name in self.models
        )

    @property
    def notes(self) -> list[str]:
        """What a report says of each."""
        return [
            f"Judge {name}: a reward model trained on {count:,} pairs that the reward model never saw, split off by "
            f"prompt; {self.left:,} pairs were left for the reward model."
            for name, count in self.pairs.items()
        ]


class PPOResult(StageResult):
    policy: str  # folders
    reference: str
    steps: int
    seconds: float
    kl: float  # nats per response, over the last steps
    kept_step: int | None = None  # that ppo.keep_best exports; null: the last
    stopped: str | None = None  # why, if before ppo.steps
    evaluations: list[dict[str, float]] = []  # step, and the statistics eval/...; step 0 is the reference, with judges
    evaluated_on: Literal["evaluation", "selection", "texts"] | None = None  # which prompts; null: no evaluations
    warnings: list[dict[str, Any]] = []  # kind, first, last, steps, message

    @property
    def made(self) -> str:
        return self.policy

    @property
    def about(self) -> str:
        warned = f", warnings: {', '.join(each['kind'] for each in self.warnings)}" if self.warnings else ""
        kept = f", step {self.kept_step} kept" if self.kept_step else ""
        return f"{self.steps} steps{kept}, KL {self.kl:.2f}{warned}"

    @property
    def extremes(self) -> dict[str, dict[str, float]]:
        """`best`, `best_step` and `last` of what the reward and each judge gave in the evaluations after step 0, by the
        statistic's name."""
        found: dict[str, dict[str, float]] = {"best": {}, "best_step": {}, "last": {}}
        steps = [each for each in self.evaluations if each["step"] > 0]
        for name in steps[0] if steps else ():
            if name == "eval/mean_scores" or name.startswith(JUDGE):
                best = max(steps, key=lambda each: each[name])
                found["best"][name], found["best_step"][name] = best[name], best["step"]
                found["last"][name] = steps[-1][name]
        return found


class TrainedBaseline(StageResult):
    """A model trained to be compared with PPO's policy."""

    model: str  # folder
    fingerprint: str

    @property
    def made(self) -> str:
        return self.model

    @property
    def about(self) -> str:
        return f"trained{_figure(self.metrics, 'loss/held_out', 'held-out loss')}"


class EvaluationResult(StageResult):
    reward: dict[str, Any]
    perplexity: dict[str, float | None] | None  # null without a set
    perplexity_counts: dict[str, Any] | None
    answer_perplexity: dict[str, float | None] | None = None  # null where no text has a prompt and an answer
    trained_on: Literal["texts", "answers"] = "texts"  # which of the two perplexities the gate is on
    diversity: dict[str, float | None]
    measured: dict[str, dict[str, Any]] = {}  # by evaluation.metrics: reference, policy, delta, ci95
    baselines: dict[str, dict[str, Any]] = {}  # by name: reward, ci95, kl, prompts, judges, lead, ...
    judges: dict[str, dict[str, Any]] = {}  # by evaluation.judges: reference, policy, delta, ci95, win_rate, ...
    lm_eval: dict[str, dict[str, Any]] = {}  # by task: metric, reference, policy, delta, ci95, documents
    phrases: dict[str, Any] = {}  # phrases, share of the gain, ci95, answers
    warnings: list[dict[str, Any]] = []  # kind, message
    kl: float  # nats per response
    report: str  # the page's path
    prompts: int = 0
    distinct_prompts: int = 0
    held_out: bool = True  # false: they are training prompts

    @property
    def made(self) -> str:
        return self.report

    @property
    def about(self) -> str:
        return f"reward {self.reward['reference']:.3f} -> {self.reward['policy']:.3f}"


class RegisteredModel(StageResult):
    name: str
    version: str
    promoted: bool
    gates: list[dict[str, Any]]
    reason: str
    duel: dict[str, Any] | None

    @property
    def made(self) -> str:
        return f"models:/{self.name}/{self.version}"

    @property
    def about(self) -> str:
        return "champion" if self.promoted else f"challenger: {self.reason}"


def _figure(metrics: Mapping[str, float], name: str, words: str) -> str:
    return f", {words} {metrics[name]:.3f}" if name in metrics else ""


Result = TypeVar("Result", bound=StageResult)


def run_record(
    recipe: str, run_id: str, done: Mapping[str, StageResult], *, until: str | None = None
) -> dict[str, Any]:
    """The record that every run ends with, in JSON: a metric that doesn't apply is null, never 0. So is what belongs to
    a stage that isn't among those `done` (by name, in their order), because the run stopped at `until`."""

    def result(kind: type[Result]) -> Result | None:
        return next((found for found in done.values() if isinstance(found, kind)), None)

    model, checks = result(RegisteredModel), result(RewardChecks)
    ppo, evaluation = result(PPOResult), result(EvaluationResult)
    return {
        "recipe": recipe,
        "mlflow_run_id": run_id,
        "model": model and {"name": model.name, "version": model.version, "promoted": model.promoted},
        "reward_model": checks
        and {
            "accuracy": checks.accuracy,
            "ci95": checks.ci95 and list(checks.ci95),
            "held_out": checks.held_out,
            "checks_passed": checks.passed,
        },
        "ppo": ppo
        and {
            "steps": ppo.steps,
            "seconds": ppo.seconds,
            "kl": evaluation.kl if evaluation else ppo.kl,
            "warnings": len(ppo.warnings),
            "kept_step": ppo.kept_step,
            "stopped": ppo.stopped,
            **{name: values or None for name, values in ppo.extremes.items()},
        },
        "course": ppo and (ppo.evaluations or None),
        "warnings": ppo and [*ppo.warnings, *(evaluation.warnings if evaluation else [])],
        "reward": evaluation and evaluation.reward,
        "perplexity": evaluation and evaluation.perplexity,
        "answer_perplexity": evaluation and evaluation.answer_perplexity,
        "diversity": evaluation
        and {key: evaluation.diversity[key] for key in ("distinct_2_reference", "distinct_2_policy")},
        "metrics": evaluation and (evaluation.measured or None),
        "baselines": evaluation and (evaluation.baselines or None),
        "judges": evaluation and (evaluation.judges or None),
        "lm_eval": evaluation and (evaluation.lm_eval or None),
        "phrases": evaluation and (evaluation.phrases or None),
        "evaluation": evaluation
        and {
            "prompts": evaluation.prompts,
            "distinct_prompts": evaluation.distinct_prompts,
            "held_out": evaluation.held_out,
        },
        "until": until,
        "stages": {
            name: {
                "about": stage.about,
                "made": stage.made,
                "folder": stage.folder or None,
                "mlflow_run_id": stage.mlflow_run_id or None,
            }
            for name, stage in done.items()
        },
    }
