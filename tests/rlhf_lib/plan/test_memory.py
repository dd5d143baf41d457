"""Parameters and memory estimated from configurations alone, against models that are really built."""

import pytest
import torch
from tiny_models import tiny_gpt2, tiny_llama, tiny_t5
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_lib.errors import ModelError
from rlhf_lib.models.critic import critic_from_classifier
from rlhf_lib.models.logprobs import arrange
from rlhf_lib.models.policy import Policy
from rlhf_lib.plan.memory import (
    Batch,
    activation_bytes,
    count,
    estimate,
    learning_blocks,
    policy_config,
    policy_outline,
    reward_config,
    reward_parameters,
)
from rlhf_lib.recipe import Recipe
from rlhf_lib.training.scratch import scratch_model, train_tokenizer


def recipe(policy: dict, **ppo) -> Recipe:
    scratch = {"layers": 3, "width": 32, "heads": 2, "vocab_size": 300, "positions": 64}
    return Recipe.model_validate(
        {
            "name": "x",
            "data": {"prompts": {"dataset": "x"}, "preferences": {}},
            "policy": {"train": {"from_scratch": scratch}} | policy,
            "reward": {"kind": "function", "function": "x:y"},
            "generation": {"max_new_tokens": 10},
            "ppo": {"batch_size": 12, "mini_batch_size": 6} | ppo,
        }
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"lora": {"r": 4}}, {"unfrozen_layers": 1}, {"critic": "separate"}],
    ids=lambda s: next(iter(s), "all"),
)
def test_the_outline_has_the_parameters_of_the_policy_that_is_built(settings):
    wanted = recipe(settings)
    tokenizer = train_tokenizer(["the cat sat on the mat"], 300, 64)
    built = Policy(
        scratch_model(wanted.policy.train.from_scratch, tokenizer, 0),
        wanted.policy.lora,
        unfrozen_layers=wanted.policy.unfrozen_layers,
        critic=wanted.policy.critic == "separate",
    )
    outlined = policy_outline(wanted, policy_config(wanted, len(tokenizer)))
    assert {p.device.type for p in outlined.model.parameters() if not hasattr(p, "lora")} == {"meta"}
    assert count(outlined, 7) == count(built, 7)
    assert count(built, 0).trained == sum(p.numel() for p in built.trainable())


def test_a_reward_model_as_critic_counts_as_what_is_built_and_learns_whole():
    wanted = recipe({"unfrozen_layers": 1})
    wanted.policy.critic, wanted.reward.kind = "reward", "preference"
    config = policy_config(wanted)
    scorer = GPT2ForSequenceClassification(reward_config(wanted.reward, config))
    built = Policy(GPT2LMHeadModel(config), unfrozen_layers=1, critic=critic_from_classifier(scorer))
    outlined = policy_outline(wanted, config)
    assert count(outlined, 7) == count(built, 7)
    batch = Batch.of(wanted, prompt=20)
    memory = estimate(wanted, outlined, count(outlined, 7), batch, torch.float32)
    # 1 block of the policy and 3 of the critic, 8 h + 2 f each; and the frozen blocks' output
    assert memory.activations == 6 * 30 * (1 + 3) * 4 * (8 * 32 + 2 * 128) + 12 * 30 * 32 * 4


def test_what_does_not_fit_the_architecture_is_refused_without_weights():
    wanted = recipe({"unfrozen_layers": 3})
    with pytest.raises(ModelError, match="unfrozen_layers is 3, but GPT2LMHeadModel has 3 blocks"):
        policy_outline(wanted, policy_config(wanted))
    wanted = recipe({"lora": {"target_modules": ["no_such_layer"]}})
    with pytest.raises(ModelError, match="LoRA can't be added"):
        policy_outline(wanted, policy_config(wanted))


def kept(policy: Policy, batch: Batch) -> int:
    """Bytes that a forward pass of so many rows really keeps for the backward pass, weights and the head's left out."""
    ids = torch.randint(1, 50, (batch.mini_batch, batch.prompt + batch.response)).tolist()
    arranged = arrange(policy.model, [row[: batch.prompt] for row in ids], [row[batch.prompt :] for row in ids])
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = arranged.states(policy.model)
    assert held.requires_grad
    return sum(storages.values())


WIDE = {"initializer_range": 0.02}
MODELS = {
    "gpt2": (tiny_gpt2, {"n_embd": 128, "n_layer": 4, "activation_function": "gelu_pytorch_tanh", **WIDE}),
    "llama": (tiny_llama, {"hidden_size": 128, "intermediate_size": 384, "num_key_value_heads": 2, **WIDE}),
    "t5": (tiny_t5, {"d_model": 128, "d_kv": 64, "d_ff": 256}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_formula_for_activations_is_what_autograd_keeps(name):
    make, overrides = MODELS[name]
    policy = Policy(make(**overrides))
    batch = Batch(rows=16, mini_batch=16, prompt=16, response=16, micro_batch_tokens=512)
    formula = sum(tokens * activation_bytes(policy, block, False) for block, tokens in learning_blocks(policy, batch))
    assert formula == pytest.approx(kept(policy, batch), rel=0.25)


def test_every_part_of_the_estimate_by_hand():
    wanted = recipe({})
    config = policy_config(wanted)
    policy = policy_outline(wanted, config)
    counted = count(policy, 1000)
    batch = Batch.of(wanted, prompt=20)
    assert batch.tokens == 6 * 30  # the mini-batch is smaller than a micro-batch may be
    memory = estimate(wanted, policy, counted, batch, torch.float32)
    assert (memory.weights, memory.reference) == (4 * counted.policy, 4 * counted.reference)
    assert (memory.gradients, memory.optimizer) == (4 * counted.trained, 8 * counted.trained)
    assert memory.reward == 4000
    assert memory.activations == 6 * 30 * 3 * 4 * (8 * 32 + 2 * 128)  # tokens, blocks, bytes, 8 h + 2 f
    assert memory.logits == 6 * 10 * 300 * 4
    assert memory.sampling == 12 * 30 * 3 * 2 * 32 * 4 + 3 * 4 * 12 * 300
    fixed = memory.weights + memory.gradients + memory.optimizer + memory.reference + memory.reward
    assert memory.total == fixed + memory.activations + memory.logits
    halved = estimate(wanted, policy, counted, batch, torch.bfloat16)
    assert halved.activations == 6 * 30 * 3 * (4 * 2 * 32 + 2 * (6 * 32 + 2 * 128))
    small = Batch.of(recipe({}, micro_batch_tokens=50), prompt=20)
    assert small.tokens == 50


def test_a_reward_that_is_trained_here_is_as_large_as_it_will_be():
    wanted = recipe({})
    config = policy_config(wanted)
    trunk = count(policy_outline(wanted, config), 0).policy
    preference = wanted.reward.model_copy(update={"kind": "preference"})
    assert (
        reward_parameters(wanted, preference, config) == trunk - 1
    )  # a score without a bias in place of the value head
    assert reward_parameters(wanted, wanted.reward, config) == 0


def test_every_member_of_an_ensemble_counts():
    wanted = recipe({})
    config = policy_config(wanted)
    alone = reward_parameters(wanted, wanted.reward.model_copy(update={"kind": "preference"}), config)
    several = wanted.reward.model_copy(update={"kind": "ensemble", "members": 4})
    assert reward_parameters(wanted, several, config) == 4 * alone
    total = {"kind": "sum", "terms": [{"reward": {"kind": "preference"}}, {"reward": wanted.reward.model_dump()}]}
    assert reward_parameters(wanted, type(wanted.reward).model_validate(total), config) == alone
