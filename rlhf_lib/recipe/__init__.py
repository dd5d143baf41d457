"""The one configuration: a recipe, typed and validated once, then passed around whole.

A recipe is a YAML file, one of ours (`rlhf_lib/recipes/NAME.yaml`) or the user's own (a path), with overrides
`section.key=value` on top. Unknown keys and wrong types are refused with the key's full name. One file a section here;
docs/recipes.md lists every key.
"""

from rlhf_lib.recipe.data import (
    Corpus,
    EvaluationSource,
    Labelled,
    Preferences,
    Prompts,
    Query,
    Rankings,
    Source,
)
from rlhf_lib.recipe.evaluation import Evaluation, Gates, PerplexitySet, Registration, TokenProbe
from rlhf_lib.recipe.loading import flatten, leaves, load_recipe, shipped
from rlhf_lib.recipe.policy import FromScratch, Lora, Policy, Train
from rlhf_lib.recipe.ppo import PPO, Generation, LengthSampler
from rlhf_lib.recipe.reward import Checks, ClassifierFromScratch, Probe, Reward, RewardTraining, Term
from rlhf_lib.recipe.root import Compute, Recipe
from rlhf_lib.recipe.section import Section

__all__ = [
    "PPO",
    "Checks",
    "ClassifierFromScratch",
    "Compute",
    "Corpus",
    "Evaluation",
    "EvaluationSource",
    "FromScratch",
    "Gates",
    "Generation",
    "Labelled",
    "LengthSampler",
    "Lora",
    "PerplexitySet",
    "Policy",
    "Preferences",
    "Probe",
    "Prompts",
    "Query",
    "Rankings",
    "Recipe",
    "Registration",
    "Reward",
    "RewardTraining",
    "Section",
    "Source",
    "Term",
    "TokenProbe",
    "Train",
    "flatten",
    "leaves",
    "load_recipe",
    "shipped",
]
