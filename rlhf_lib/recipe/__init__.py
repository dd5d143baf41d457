"""The one configuration: a recipe, typed and validated once, then passed around whole.

A recipe is a YAML file, one of ours (`rlhf_lib/recipes/NAME.yaml`) or the user's own (a path), with overrides
`section.key=value` on top. Unknown keys and wrong types are refused with the key's full name. docs/recipes.md lists
every key.
"""

import warnings
from typing import Any

from rlhf_lib.recipe.data import (
    CorpusConfig,
    EvaluationSourceConfig,
    JoinedSetConfig,
    LabelledConfig,
    NearDuplicatesConfig,
    PreferencesConfig,
    PromptsConfig,
    QueryConfig,
    RankingsConfig,
    Section,
    SourceConfig,
)
from rlhf_lib.recipe.judges import JudgeConfig
from rlhf_lib.recipe.learning import (
    FromScratchConfig,
    GenerationConfig,
    LengthSamplerConfig,
    LoraConfig,
    PolicyConfig,
    PPOConfig,
    StopWhenConfig,
    TrainConfig,
)
from rlhf_lib.recipe.llm_judge import LLMJudgeConfig
from rlhf_lib.recipe.loading import flatten, leaves, load_recipe, shipped
from rlhf_lib.recipe.recipe import (
    ComputeConfig,
    EvaluationConfig,
    GatesConfig,
    LmEvalConfig,
    PerplexitySetConfig,
    Recipe,
    RegistrationConfig,
    TokenProbeConfig,
)
from rlhf_lib.recipe.reward import (
    ChecksConfig,
    ClassifierFromScratchConfig,
    ProbeConfig,
    RewardConfig,
    RewardTrainingConfig,
    TermConfig,
)

__all__ = [
    "ChecksConfig",
    "ClassifierFromScratchConfig",
    "ComputeConfig",
    "CorpusConfig",
    "EvaluationConfig",
    "EvaluationSourceConfig",
    "FromScratchConfig",
    "GatesConfig",
    "GenerationConfig",
    "JoinedSetConfig",
    "JudgeConfig",
    "LLMJudgeConfig",
    "LabelledConfig",
    "LengthSamplerConfig",
    "LmEvalConfig",
    "LoraConfig",
    "NearDuplicatesConfig",
    "PPOConfig",
    "PerplexitySetConfig",
    "PolicyConfig",
    "PreferencesConfig",
    "ProbeConfig",
    "PromptsConfig",
    "QueryConfig",
    "RankingsConfig",
    "Recipe",
    "RegistrationConfig",
    "RewardConfig",
    "RewardTrainingConfig",
    "Section",
    "SourceConfig",
    "StopWhenConfig",
    "TermConfig",
    "TokenProbeConfig",
    "TrainConfig",
    "flatten",
    "leaves",
    "load_recipe",
    "shipped",
]

_RENAMED = {name.removesuffix("Config"): name for name in __all__ if name.endswith("Config")}


def __getattr__(name: str) -> Any:
    """The sections' names before they ended in Config, for one more release."""
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"rlhf_lib.recipe.{name} is now {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
    return globals()[_RENAMED[name]]
