"""Modules and functions under the names that they had before they moved, for one more release, with a warning each."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "rlhf_lib.data.agreement": "rlhf_lib.data.rankings.consensus",
    "rlhf_lib.data.consensus": "rlhf_lib.data.rankings.consensus",
    "rlhf_lib.data.filters": "rlhf_lib.data.sources",
    "rlhf_lib.data.ranking_report": "rlhf_lib.data.rankings.report",
    "rlhf_lib.data.texts": "rlhf_lib.data.corpus",
    "rlhf_lib.evaluation.comparison": "rlhf_lib.evaluation.compare",
    "rlhf_lib.evaluation.diversity": "rlhf_lib.evaluation.measures",
    "rlhf_lib.evaluation.figures": "rlhf_lib.evaluation.measures",
    "rlhf_lib.evaluation.reward_delta": "rlhf_lib.evaluation.measures",
    "rlhf_lib.evaluation.versus": "rlhf_lib.evaluation.compare",
    "rlhf_lib.evaluation.words": "rlhf_lib.evaluation.measures",
    "rlhf_lib.models.base": "rlhf_lib.training.sft",
    "rlhf_lib.models.memory": "rlhf_lib.models.device",
    "rlhf_lib.models.seq2seq": "rlhf_lib.training.sft",
    "rlhf_lib.models.supervised": "rlhf_lib.training.supervised",
    "rlhf_lib.ppo.advantages": "rlhf_lib.ppo.objectives",
    "rlhf_lib.ppo.decoding": "rlhf_lib.ppo.rollout",
    "rlhf_lib.ppo.kl": "rlhf_lib.ppo.objectives",
    "rlhf_lib.ppo.logprobs": "rlhf_lib.models.logprobs",
    "rlhf_lib.ppo.losses": "rlhf_lib.ppo.objectives",
    "rlhf_lib.ppo.moments": "rlhf_lib.ppo.objectives",
    "rlhf_lib.ppo.plots": "rlhf_lib.ppo.statistics",
    "rlhf_lib.ppo.scoring": "rlhf_lib.models.logprobs",
    "rlhf_lib.ppo.stats": "rlhf_lib.ppo.statistics",
    "rlhf_lib.rewards.classifier_training": "rlhf_lib.training.classifier",
    "rlhf_lib.rewards.training": "rlhf_lib.training.reward_model",
}
# old module and name -> where it is now, for what did not move with its module or has another name
NAMES = {
    "rlhf_lib.evaluation.comparison.compare": "rlhf_lib.evaluation.compare.compare_policy",
    "rlhf_lib.evaluation.figures.flat_figures": "rlhf_lib.evaluation.measures.flat_metrics",
    "rlhf_lib.evaluation.versus.contest": "rlhf_lib.evaluation.compare.compare_folders",
    "rlhf_lib.models.base.scratch_model": "rlhf_lib.training.scratch.scratch_model",
    "rlhf_lib.models.base.train_tokenizer": "rlhf_lib.training.scratch.train_tokenizer",
    "rlhf_lib.models.seq2seq.scratch_t5": "rlhf_lib.training.scratch.scratch_t5",
    "rlhf_lib.ppo.scoring.score_responses": "rlhf_lib.models.logprobs.response_logprobs",
}


class _OldModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        place, _, known = NAMES.get(f"{self.__name__}.{name}", "").rpartition(".")
        return getattr(importlib.import_module(place or MODULES[self.__name__]), known or name)


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is now {MODULES[spec.name]}", DeprecationWarning, stacklevel=2)
        return _OldModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def install() -> None:
    """Let the old names be imported."""
    sys.meta_path.append(_Finder())
