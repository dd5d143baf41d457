"""Which stages there are, and the key that decides whether a stage's work is reused.

The key changes with the stage's settings, the content of its inputs, every project module that its own module imports,
directly or not, and the versions of the libraries that compute.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

import grimp

from rlhf_lib.errors import RecipeError
from rlhf_lib.recipe import JudgeConfig, Recipe, RewardConfig
from tasks import results

PACKAGES = ("tasks", "rlhf_lib")
LIBRARIES = ("torch", "transformers", "tokenizers", "trl", "datasets", "peft", "accelerate")

Result = TypeVar("Result", bound=results.StageResult)


@dataclass(frozen=True)
class Stage(Generic[Result]):
    """A stage. `name`: of its MLflow run and folder. `module`: where it is written. `result`: what it returns. `reads`:
    modules that it reads as files instead of importing them. `every_run`: repeated in every run, though a run resumes
    from what an unfinished one with the same key left."""

    name: str
    module: str
    result: type[Result]
    every_run: bool = False
    reads: tuple[str, ...] = ()

    def key(self, *inputs: Any) -> str:
        """16 hex digits that change with any of the inputs (JSON values), with the code, and with the libraries."""
        return content_key(self.name, inputs, _code(self))


DATA = Stage("data", "tasks.data", results.PreparedData)
BASE_MODEL = Stage("base_model", "tasks.base_model", results.StartingPolicy)
REWARD_MODEL = Stage("reward_model", "tasks.reward_model", results.RewardArtifact)
JUDGES = Stage("judges", "tasks.judges", results.JudgeModels)
REWARD_CHECKS = Stage("reward_checks", "tasks.reward_checks", results.RewardChecks)
PPO = Stage("ppo", "tasks.ppo", results.PPOResult, every_run=True)
SFT_ON_CHOSEN = Stage("sft_on_chosen", "tasks.sft_on_chosen", results.TrainedBaseline)
EVALUATION = Stage("evaluation", "tasks.evaluation", results.EvaluationResult, every_run=True)
REGISTRATION = Stage(
    "registration",
    "tasks.registration",
    results.RegisteredModel,
    every_run=True,
    reads=("tasks.registry.policy_server",),
)
STAGES: tuple[Stage[Any], ...] = (
    DATA,
    BASE_MODEL,
    REWARD_MODEL,
    REWARD_CHECKS,
    JUDGES,
    PPO,
    SFT_ON_CHOSEN,
    EVALUATION,
    REGISTRATION,
)


def check_stage(name: str) -> str:
    """The stage's name, hyphens made underscores. Raises RecipeError if there is no such stage."""
    names, wanted = [stage.name for stage in STAGES], name.strip().lower().replace("-", "_").replace(" ", "_")
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise RecipeError(f"there is no stage '{name}'{hint}; the stages are {', '.join(names)}")
    return wanted


def check_stage_of(recipe: Recipe, name: str) -> str:
    """`check_stage`, for a run of the recipe. Raises RecipeError too for a stage that it has no use for."""
    stage = check_stage(name)
    if stage == JUDGES.name and not recipe.trains_judges:
        raise RecipeError(
            f"{recipe.name} has no stage {stage}: it needs one of evaluation.judges with pairs held_out, or of kind "
            "ensemble"
        )
    if stage == SFT_ON_CHOSEN.name and not recipe.trains_on_chosen:
        raise RecipeError(
            f"{recipe.name} has no stage {stage}: it needs evaluation.sft_on_chosen, and policy.train with answers both"
        )
    return stage


def content_key(*parts: Any) -> str:
    """16 hex digits that change with any of the parts (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def function_source(path: str, setting: str) -> str:
    """16 hex digits of the function `package.module:name` that the recipe's setting names, and of the file that it is
    written in. Raises RecipeError where it can't be imported."""
    from rlhf_lib.rewards.function import import_function

    function = import_function(path, setting)
    file = inspect.getsourcefile(inspect.unwrap(function) if inspect.isfunction(function) else type(function))
    return content_key(path, hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None)


def reward_fingerprint(reward: RewardConfig, model: str | None = None) -> str | None:
    """What identifies this reward: its files' content, its function's source file, or those of all its parts. `model`:
    where it was trained, or its parts were."""
    from rlhf_lib.models.loading import fingerprint

    if reward.parts:
        combined = reward.model_dump(mode="json", include={"terms", "combine", "uncertainty_weight"})
        parts = [reward_fingerprint(part) for part in reward.parts.values()]
        return content_key(combined, parts, fingerprint(model) if model else None)
    name = model or reward.model
    if reward.kind != "function":
        return fingerprint(name) if name else None
    return function_source(reward.function or "", "reward.function")


def judge_fingerprint(judge: JudgeConfig, model: str | None = None) -> str | None:
    """What identifies this judge: as a reward's, or the language model, its endpoint and what it is asked."""
    if judge.kind == "llm":
        return content_key(judge.model, judge.endpoint.model_dump(mode="json"))
    return reward_fingerprint(judge, model)


def sources(stage: Stage[Any]) -> list[Path]:
    """The project's files that the stage's work may depend on: every module that its own imports, at the top or inside
    functions, directly or indirectly, and the data files of their packages."""
    graph = _import_graph()
    reached: set[str] = set()
    found = {stage.module, *stage.reads}
    while found:
        reached |= found
        needed = {name for module in found for name in graph.find_upstream_modules(module)}
        needed |= {module.rpartition(".")[0] for module in found | needed} - {
            ""
        }  # importing a module runs its packages
        found = needed - reached
    files: set[Path] = set()
    for name in reached:
        file = _file(name)
        files.add(file)
        if file.name == "__init__.py" and "." in name:
            files |= {f for f in file.parent.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")}
    return sorted(files)


@cache
def _code(stage: Stage[Any]) -> str:
    digest = hashlib.sha256()
    for file in sources(stage):
        digest.update(file.read_bytes())
    digest.update(repr([(name, version(name)) for name in LIBRARIES]).encode())
    return digest.hexdigest()


@cache
def _import_graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def _file(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None, f"{module} is gone: correct STAGES"
    assert spec.origin is not None, f"{module} has no source file"
    return Path(spec.origin)
