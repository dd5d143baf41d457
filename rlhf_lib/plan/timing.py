"""How long a run will take, from a few passes of the model with random weights on the machine that asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rlhf_lib.models.device import pick_device, pick_dtype
from rlhf_lib.models.logprobs import arrange
from rlhf_lib.models.policy import Policy, autocast
from rlhf_lib.plan.memory import Batch
from rlhf_lib.ppo.rollout import sample_responses

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from rlhf_lib.recipe import Recipe

MOST_PARAMETERS = {"cpu": 4e8, "cuda": 4e9}  # of a model that is built for a measurement
TOKENS = 512  # in the passes measured
DRAWN = 4  # tokens of the responses measured
SAMPLED = 32  # responses sampled for it on a CPU, whose time grows with their number


@dataclass(frozen=True)
class Rates:
    """Seconds: of a forward and of a forward and backward pass, a token; of a batch's sampling."""

    forward: float
    update: float
    sampling: float


@dataclass(frozen=True)
class Work:
    """Tokens that the stages pass through a model of the policy's size; how often they are learnt from is included."""

    base_model: float
    reward_model: float
    evaluation: float  # forward alone
    reward: float | None  # seconds that the reward takes for one response; None: as the policy's forward passes
    models: int = 1  # in the reward: so many passes


def measure(
    recipe: Recipe, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, parameters: int, batch: Batch
) -> Rates | None:
    """The rates on the recipe's device; None where the model is too large to be built for this."""
    device = pick_device(recipe.compute)
    if parameters > MOST_PARAMETERS.get(device.type, 0):
        return None
    dtype = pick_dtype(recipe.compute, device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = _build(recipe, config).to(device)
        rows = max(1, min(batch.mini_batch, TOKENS // (batch.prompt + batch.response)))
        queries = torch.randint(3, config.get_text_config().vocab_size, (rows, batch.prompt)).tolist()
        answers = torch.randint(3, config.get_text_config().vocab_size, (rows, batch.response)).tolist()
        arranged = arrange(policy.model, queries, answers)

        def forward() -> None:
            with torch.no_grad(), autocast(device, dtype):
                policy(arranged, recipe.generation.temperature)

        def update() -> None:
            with autocast(device, dtype):
                logprobs, values, _ = policy(arranged, recipe.generation.temperature)
            (logprobs.sum() + values.sum()).backward()
            policy.zero_grad(set_to_none=True)

        sampled = min(batch.rows, SAMPLED) if device.type == "cpu" else batch.rows

        def sample(tokens: int) -> Callable[[], object]:
            prompts = [queries[i % rows] for i in range(sampled)]
            length = {"max_new_tokens": tokens, "length_sampler": None, "ignore_eos": True, "stop": None}
            generation = recipe.generation.model_copy(update=length)

            def draw() -> None:
                with autocast(device, dtype):
                    sample_responses(policy.model, tokenizer, prompts, generation, seed=0, batch_size=sampled)

            return draw

        tokens = rows * (batch.prompt + batch.response)
        first, some = _seconds(sample(1), device), _seconds(sample(1 + DRAWN), device)
        each = max(0.0, some - first) / DRAWN
        return Rates(
            forward=_seconds(forward, device) / tokens,
            update=_seconds(update, device) / tokens,
            sampling=(first + (batch.response - 1) * each) * batch.rows / sampled,
        )


def estimate(recipe: Recipe, rates: Rates, batch: Batch, work: Work) -> dict[str, float]:
    """Seconds by stage, and of one step of PPO, from the rates and the work; loading and logging left out."""
    row = batch.prompt + batch.response
    scored = batch.rows * (work.reward if work.reward is not None else work.models * row * rates.forward)
    step = rates.sampling + scored + batch.rows * row * (2 * rates.forward + recipe.ppo.ppo_epochs * rates.update)
    settings, chosen = recipe.evaluation, int(recipe.trains_on_chosen)
    answers = (2 + chosen) * settings.prompts  # both models answer, and the trained baseline
    answers += (settings.best_of or 0) * min(settings.best_of_prompts, settings.prompts)
    evaluation = answers / batch.rows * (rates.sampling + scored) + 2 * work.evaluation * rates.forward
    return {
        "base_model": (1 + chosen) * work.base_model * rates.update,
        "reward_model": work.reward_model * rates.update,
        "ppo": recipe.ppo.steps * step,
        "evaluation": evaluation,
        "ppo_step": step,
    }


def _build(recipe: Recipe, config: PreTrainedConfig) -> Policy:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    settings = recipe.policy
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config, trust_remote_code=settings.trust_remote_code)
    return Policy(
        model,
        settings.lora,
        unfrozen_layers=settings.unfrozen_layers,
        critic=settings.critic != "shared",  # a reward model as critic counts as large as the policy
        gradient_checkpointing=settings.gradient_checkpointing,
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of the faster of two calls, after one to warm up."""
    took = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - start)
    return min(took[1:])
