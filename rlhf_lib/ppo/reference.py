"""Samples of the reference policy, which rewards are scaled on, and checked on where the data has no answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_lib.ppo.rollout import Responses
    from rlhf_lib.recipe import Recipe
    from rlhf_lib.rewards.calling import Columns

REFERENCE_SAMPLES = 256


def sample_reference(recipe: Recipe, model: str, prompts: str) -> tuple[list[str], Responses, Columns]:
    """REFERENCE_SAMPLES queries from the folder `prompts` of training prompts, the responses of `model`, the starting
    policy, and the prompts' other columns; few prompts are answered several times each."""
    from datasets import load_from_disk

    from rlhf_lib.conversation import prompts_of
    from rlhf_lib.models.chat import policy_tokenizer
    from rlhf_lib.models.device import pick_device
    from rlhf_lib.models.loading import load_policy
    from rlhf_lib.ppo.rollout import sample_responses
    from rlhf_lib.rewards.columns import dataset_columns, with_ids

    rows = load_from_disk(prompts)
    rows = rows.select([i % len(rows) for i in range(REFERENCE_SAMPLES)])
    trust = recipe.policy.trust_remote_code
    sampled = sample_responses(
        load_policy(model, trust_remote_code=trust).to(pick_device(recipe.compute)),  # type: ignore[arg-type]
        policy_tokenizer(recipe.policy, model),
        list(rows["input_ids"]),
        recipe.generation,
        seed=recipe.seed,
    )
    return prompts_of(rows, "query"), sampled, with_ids(dataset_columns(rows), sampled.response_ids)
