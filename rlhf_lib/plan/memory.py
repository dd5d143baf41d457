"""How many parameters a recipe has, how many of them learn, and how much memory PPO will need, part by part.

Nothing is loaded: the models are built from their configurations without storage (torch's meta device).

The formulas, in bytes, for P parameters of which T learn, a micro-batch of N tokens, R of them of responses:

    weights      4 P: fp32, whatever the precision of the passes. In bf16 also 2 P: autocast's copies
    gradients    4 T
    optimizer    8 T: AdamW's two moments (2 T for the 8-bit ones)
    reference    4 per parameter that it doesn't share with the policy: none for LoRA
    reward       4 per parameter of its models, and of the judges' where PPO asks them (ppo.eval_every)
    activations  4 N (8 h + m f) per block that learns, of width h and inner width f, m = 2, or 4 for a gated MLP; a
                 seq2seq decoder 6 h more. In bf16 the two residual streams stay fp32 and the rest takes half. With
                 gradient checkpointing 4 N h per block, and one block's activations. A critic's blocks all learn
    logits       4 R V for a vocabulary of V (2 in bf16), of at most LOGITS_ALIVE at a time
    sampling     keys and values of a batch: 8 h per token and block (4 in bf16). Not at the same time as the two above:
                 the larger of them counts
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlhf_lib.errors import RLHFError
from rlhf_lib.models.critic import Critic, critic_from_classifier
from rlhf_lib.models.loading import load_config
from rlhf_lib.models.logprobs import LOGITS_ALIVE
from rlhf_lib.models.policy import Policy
from rlhf_lib.models.trunk import blocks, trunk_and_head
from rlhf_lib.training.scratch import scratch_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from rlhf_lib.recipe import Recipe, RewardConfig

LIBRARIES = 0.65e9  # bytes that Python, torch, Prefect and MLflow take by themselves on a CPU (docs/log.md)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters. `policy` has its value head and, where it is separate, its critic."""

    policy: int
    trained: int
    reference: int  # that it doesn't share with the policy
    reward: int


def policy_config(recipe: Recipe, vocab_size: int | None = None) -> PreTrainedConfig:
    """The policy's configuration; of one made from scratch, with a vocabulary of the given size. Raises ModelError."""
    scratch = recipe.policy.train.from_scratch if recipe.policy.train else None
    if scratch is not None:
        return scratch_config(scratch, vocab_size or scratch.vocab_size, bos_token_id=0, eos_token_id=0, pad_token_id=1)
    assert recipe.policy.model is not None, "the recipe requires a model here"
    return load_config(recipe.policy.model, recipe.policy.trust_remote_code)


def outline(config: PreTrainedConfig, kind: str, trust_remote_code: bool = False) -> Any:
    """The model without weights: `kind` is policy or classifier."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    auto: Any = AutoModelForSequenceClassification
    if kind == "policy":
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=trust_remote_code)


class NoOutline(Exception):
    """A model that can't be built without storage, or has no such parts as the formulas are about."""


def policy_outline(recipe: Recipe, config: PreTrainedConfig) -> Policy:
    """The policy as PPO will build it, without weights. Raises ModelError where the recipe's LoRA or unfrozen_layers
    don't fit the architecture, NoOutline for an architecture that can't be built so."""
    settings = recipe.policy
    try:
        with torch.device("meta"):
            critic: bool | Critic = settings.critic == "separate"
            if settings.critic == "reward":
                reward = recipe.reward
                scorer = outline(reward_config(reward, config), "classifier", reward.trust_remote_code)
                critic = critic_from_classifier(scorer)
            return Policy(
                outline(config, "policy", settings.trust_remote_code),
                settings.lora,
                unfrozen_layers=settings.unfrozen_layers,
                critic=critic,
                gradient_checkpointing=settings.gradient_checkpointing,
            )
    except RLHFError:
        raise
    except Exception as error:  # architectures fail on the meta device in ways of their own
        raise NoOutline(str(error)) from error


def count(policy: Policy, reward: int) -> Parameters:
    """Of a policy, real or in outline, and so many of its reward."""
    own = {
        id(p) for part in (policy.model, policy.critic, policy.v_head) if part is not None for p in part.parameters()
    }
    every = list(policy.parameters())
    return Parameters(
        policy=sum(p.numel() for p in every if id(p) in own),
        trained=sum(p.numel() for p in policy.trainable()),
        reference=sum(p.numel() for p in every if id(p) not in own),
        reward=reward,
    )


def reward_parameters(recipe: Recipe, reward: RewardConfig, policy: PreTrainedConfig) -> int:
    """Parameters of the reward's models together; one that is trained here counts as large as it will be."""
    if reward.kind == "ensemble" and not reward.models:
        return reward.members * reward_parameters(recipe, reward.preference(reward.model), policy)
    if reward.parts:
        return sum(reward_parameters(recipe, part, policy) for part in reward.parts.values())
    if reward.kind == "function":
        return 0
    if (size := reward.train.from_scratch) is not None:  # a RoBERTa: embeddings, then 12 width^2 a block
        return (size.vocab_size + size.positions) * size.width + 12 * size.layers * size.width**2
    config = reward_config(reward, policy)
    kind = "policy" if reward.kind == "likelihood" or config.is_encoder_decoder else "classifier"
    return sum(p.numel() for p in outline(config, kind, reward.trust_remote_code).parameters())


def reward_config(reward: RewardConfig, policy: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a reward's model; of one that is trained here, what it starts from with one output."""
    config = policy if reward.model is None else load_config(reward.model, reward.trust_remote_code)
    if reward.kind == "preference":
        config = copy.deepcopy(config)
        config.num_labels = 1
    return config


@dataclass(frozen=True)
class Batch:
    """What passes through the policy at once: a batch of so many rows, with so many tokens a prompt and a response."""

    rows: int
    mini_batch: int
    prompt: int
    response: int
    micro_batch_tokens: int

    @classmethod
    def of(cls, recipe: Recipe, prompt: int) -> Batch:
        """The recipe's, for prompts of so many tokens."""
        ppo = recipe.ppo
        size = ppo.mini_batch_size or ppo.batch_size
        return cls(ppo.batch_size, size, prompt, recipe.generation.response_limit, ppo.micro_batch_tokens)

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        row = self.prompt + self.response
        return max(row, min(self.micro_batch_tokens, self.mini_batch * row))


@dataclass(frozen=True)
class Memory:
    """Bytes; see the formulas above."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    reward: float
    activations: float
    logits: float
    sampling: float

    @property
    def total(self) -> float:
        """At the peak."""
        fixed = self.weights + self.gradients + self.optimizer + self.reference + self.reward
        return fixed + max(self.activations + self.logits, self.sampling)

    def as_dict(self) -> dict[str, float]:
        return asdict(self) | {"total": self.total}


def estimate(recipe: Recipe, policy: Policy, counted: Parameters, batch: Batch, dtype: torch.dtype) -> Memory:
    """What PPO will need at its peak, beside the libraries."""
    config = policy.config.get_text_config()
    width, halved = int(config.hidden_size), dtype == torch.bfloat16
    every = len(_blocks(policy.model))
    activations = _activations(policy, policy, learning_blocks(policy, batch), halved)
    if policy.critic is not None:  # all of it learns, whatever is frozen in the policy
        every_block = _seen(policy.critic, _blocks(policy.critic), batch)
        activations += _activations(policy, policy.critic, every_block, halved)
    responses = batch.tokens * batch.response / (batch.prompt + batch.response)
    logits = min(responses * config.vocab_size, LOGITS_ALIVE) * (2 if halved else 4)
    cached = batch.rows * (batch.prompt + batch.response) * every * 2 * width * (2 if halved else 4)
    bottom = batch.rows * (batch.prompt + batch.response) * width * 4 if policy.shares_bottom else 0
    return Memory(
        weights=counted.policy * (6 if halved else 4),
        gradients=4 * counted.trained,
        optimizer=counted.trained * (8 if recipe.ppo.optimizer == "adamw" else 2),
        reference=4 * counted.reference,
        reward=4 * counted.reward,
        activations=activations + bottom,
        logits=logits,
        sampling=cached + 3 * 4 * batch.rows * config.vocab_size,
    )


def _activations(
    policy: Policy, model: Policy | PreTrainedModel, learning: list[tuple[nn.Module, int]], halved: bool
) -> float:
    """What these blocks of the policy, or of its critic, keep together for a micro-batch's backward pass."""
    kept = [tokens * activation_bytes(model, block, halved) for block, tokens in learning]
    if not policy.gradient_checkpointing:
        return sum(kept)
    width = int(model.config.get_text_config().hidden_size)
    return sum(4 * width * tokens for _, tokens in learning) + max(kept)


def activation_bytes(model: Policy | PreTrainedModel, block: nn.Module, halved: bool) -> int:
    """What a block keeps of each token for the backward pass."""
    config = model.config.get_text_config()
    width = int(config.hidden_size)
    inner = (
        getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None) or getattr(config, "ffn_dim", None)
    )
    inner = int(inner or getattr(config, "n_inner", None) or 4 * width)
    names = [name.rpartition(".")[2] for name, _ in block.named_modules()]
    gated = "gate_proj" in names or "wi_1" in names
    crossed = 6 * width if "EncDecAttention" in names or "encoder_attn" in names else 0
    rest = 6 * width + (4 if gated else 2) * inner + crossed
    return 4 * 2 * width + (2 if halved else 4) * rest


def learning_blocks(policy: Policy, batch: Batch) -> list[tuple[nn.Module, int]]:
    """The blocks that keep activations, all or the top ones where only these learn, with the tokens that each sees of a
    micro-batch: a seq2seq model's encoder reads the prompts, its decoder the responses."""
    every = _blocks(policy.model)
    learning = every if policy.unfrozen_layers is None else every[-policy.unfrozen_layers :]
    return _seen(policy.model, learning, batch)


def _seen(model: PreTrainedModel, learning: list[nn.Module], batch: Batch) -> list[tuple[nn.Module, int]]:
    if not model.config.is_encoder_decoder:
        return [(block, batch.tokens) for block in learning]
    encoder = {id(block) for block in blocks(model.get_encoder())[1]}
    prompts = batch.tokens * batch.prompt // (batch.prompt + batch.response)
    return [(block, prompts if id(block) in encoder else batch.tokens - prompts) for block in learning]


def _blocks(model: Any) -> list[nn.Module]:
    parts = [model.get_encoder()] if model.config.is_encoder_decoder else []
    return [block for part in (*parts, trunk_and_head(model)[0]) for block in blocks(part)[1]]


def available(device: torch.device) -> float | None:
    """Bytes of memory that the device has free; None where it can't be told."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu":
        import psutil

        return float(psutil.virtual_memory().available)
    return None
