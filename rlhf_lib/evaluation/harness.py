"""Tasks of EleutherAI's lm-evaluation-harness before and after PPO: whether the policy lost what the reward doesn't
look at (Biderman et al. 2024, "Lessons from the Trenches on Reproducible Evaluation of Language Models")."""

from __future__ import annotations

import difflib
import importlib.util
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.errors import DataError, RecipeError
from rlhf_lib.models.hub import offline_if_unreachable
from rlhf_lib.recipe import LmEvalConfig
from rlhf_lib.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

KEY = "evaluation.lm_eval"
Documents = dict[tuple[str, int], float]  # (task, document's number) -> the metric's value


@dataclass(frozen=True)
class TaskChange:
    """A task's metric, the mean over its documents, by the reference and by the policy; `delta` and its 95% interval
    (None for a handful of documents) are paired by document."""

    name: str
    metric: str
    reference: float
    policy: float
    delta: float
    ci95: Interval | None
    documents: int
    higher_is_better: bool

    @property
    def record(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "reference": self.reference,
            "policy": self.policy,
            "delta": self.delta,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "documents": self.documents,
            "higher_is_better": int(self.higher_is_better),
        }


def check_tasks(settings: LmEvalConfig) -> dict[str, tuple[str, bool]]:
    """Each task's metric, and whether more of it is better. Opens the tasks' data, as the evaluation will.

    Raises RecipeError where the package is missing, or for a task or metric that it doesn't have or that has no value
    for each document; DataError for data that can't be opened.
    """
    manager = _manager(settings)
    return {name: _metric(name, _load(manager, name), settings.metrics.get(name)) for name in settings.tasks}


def measure_tasks(
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    settings: LmEvalConfig,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[TaskChange]:
    """What `models["policy"]` gained or lost on each task against `models["reference"]`. A group's tasks are pooled:
    every document weighs the same. Raises as `check_tasks`."""
    manager, changes = _manager(settings), []
    for name in settings.tasks:
        with offline_if_unreachable():
            values = {
                side: _values(model, tokenizer, name, manager, settings, dtype, seed) for side, model in models.items()
            }
        metric, higher = _metric(name, _load(manager, name), settings.metrics.get(name))
        changes.append(change(name, metric, values["reference"], values["policy"], higher=higher, seed=seed))
    return changes


def change(
    name: str, metric: str, before: Documents, after: Documents, *, higher: bool = True, seed: int = 0
) -> TaskChange:
    """Paired by document; both must have the same ones."""
    if before.keys() != after.keys():
        raise ValueError(f"{name}: the two models answered different documents")
    deltas = [after[document] - value for document, value in before.items()]
    means = fmean(before.values()), fmean(after.values())
    return TaskChange(
        name, metric, *means, fmean(deltas), mean_interval(deltas, seed=seed), len(deltas), higher_is_better=higher
    )


def _values(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    manager: TaskManager,
    settings: LmEvalConfig,
    dtype: torch.dtype,
    seed: int,
) -> Documents:
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    loaded = _load(manager, name)
    metric, _ = _metric(name, loaded, settings.metrics.get(name))
    for task in loaded["tasks"].values():
        shots = task.get_config("num_fewshot")
        if shots != 0 and (settings.num_fewshot is not None or shots is None):  # the harness's own rule: 0 stays 0
            task.set_config(key="num_fewshot", value=settings.num_fewshot or 0)
        task.set_fewshot_seed(seed=seed)
    with _quiet():
        scorer = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=settings.batch_size,
            mixed_precision_dtype=None if dtype == torch.float32 else dtype,
            softmax_dtype=torch.float32,
        )
        found = evaluate(lm=scorer, task_dict=loaded, limit=settings.limit, bootstrap_iters=0, log_samples=True)
    assert found is not None, "one process"
    return {
        (task, int(sample["doc_id"])): float(sample[metric])
        for task, samples in found["samples"].items()
        for sample in samples
        if sample["filter"] == samples[0]["filter"]  # a task may read an answer in several ways: its first
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's progress bars, which it can't be asked to leave out, and remarks on how it is called."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def _manager(settings: LmEvalConfig) -> TaskManager:
    """The harness's list of tasks, and those of `include_path`."""
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError(f"{KEY} needs the package lm_eval: pip install 'ppo-rlhf[lm-eval]', or set it to null")
    if settings.include_path is not None:
        if not Path(settings.include_path).is_dir():
            raise RecipeError(f"{KEY}.include_path {settings.include_path}: no such folder")
        own = _listed(settings.include_path, False)
        if all(_complete(own, name) for name in settings.tasks):
            return own
    manager = _listed(settings.include_path, True)
    for name in settings.tasks:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise RecipeError(f"{KEY}.tasks: the harness has no task {name}: {hint}lm-eval ls tasks lists them")
    return manager


def _complete(manager: TaskManager, name: str) -> bool:
    """Whether the list has the task, or the group with all its tasks."""
    entry = manager.task_index.get(name)
    parts = (entry.cfg or {}).get("task") if entry else None
    inner = parts if isinstance(parts, list) else []
    return entry is not None and all(isinstance(part, str) and _complete(manager, part) for part in inner)


@cache
def _listed(include_path: str | None, defaults: bool) -> TaskManager:
    """Its own tasks are some ten thousand files, which take seconds to read."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager(include_path=include_path, include_defaults=defaults)


def _load(manager: TaskManager, name: str) -> Any:
    """The task, or the group's tasks, with their data. Raises DataError, and RecipeError for one that runs code."""
    try:
        with offline_if_unreachable() as away, _quiet():
            loaded = manager.load([name])
    except Exception as error:  # whatever a task's own file or code raises
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        hint = (
            f" ({away}: run once with the hub, or give a task over local files by {KEY}.include_path)" if away else ""
        )
        raise DataError(f"{KEY}.tasks: {name} can't be opened: {reason}{hint}") from error
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise RecipeError(f"{KEY}.tasks: {name} runs code that the model writes, which is not done here: remove it")
        if getattr(task, "MULTIMODAL", False):
            raise RecipeError(f"{KEY}.tasks: {name} asks about images, of which the policy knows nothing: remove it")
    return loaded


def _metric(name: str, loaded: Any, wanted: str | None) -> tuple[str, bool]:
    """The metric of the task, `wanted` or else its first: one whose figure is the mean over the documents."""
    from lm_eval.api.metrics import mean

    tasks: Sequence[Any] = list(loaded["tasks"].values())
    means = [{metric for metric, how in task.aggregation().items() if how is mean} for task in tasks]
    usable = [metric for metric in tasks[0].aggregation() if all(metric in found for found in means)]
    if not usable:
        raise RecipeError(
            f"{KEY}.tasks: {name} has no metric with a value for each document, which could be compared before and "
            "after: remove it (for perplexity there is evaluation.perplexity)"
        )
    if wanted is not None and wanted not in usable:
        raise RecipeError(f"{KEY}.metrics: {name} has no {wanted}: use {' or '.join(usable)}")
    metric = wanted or usable[0]
    return metric, bool(tasks[0].higher_is_better()[metric])
