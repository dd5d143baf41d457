"""Policies beyond a whole causal model: seq2seq, top layers alone, a critic of its own, adapters over adapters."""

from __future__ import annotations

import re

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import (
    EOS,
    given_responses,
    one_thread,  # noqa: F401
    same,
    tiny_gpt2,
    tiny_llama,
    tiny_prompts,
    tiny_t5,
    tiny_trainer,
    weights,
    word_tokenizer,
)

from rlhf_lib.errors import ModelError
from rlhf_lib.models.logprobs import arrange, response_logprobs
from rlhf_lib.models.policy import Policy
from rlhf_lib.models.trunk import count_top
from rlhf_lib.ppo.rollout import sample_responses
from rlhf_lib.recipe import GenerationConfig, LoraConfig

QUERIES = [[5, 9, 2], [EOS], [3, EOS, 8, 1, 4, 7], [11, 12]]
RESPONSES = [[4, 8], [7, EOS, 3, 2, EOS], [9], [1, 2, 3, 4, 5, 6, 7]]
SCORES = torch.tensor([1.0, -1.0, 0.5, 2.0])
LORA = LoraConfig(r=4, alpha=8)


def scored(model) -> torch.Tensor:
    return torch.cat(response_logprobs(model, QUERIES, RESPONSES))


def reference_of(trainer) -> torch.Tensor:
    with trainer.policy.reference() as reference:
        return scored(reference)


def close(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


# ---------------------------------------------------------------- seq2seq


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def t5(request):
    """Tied embeddings scale the decoder's states before the head."""
    return tiny_t5(tie_word_embeddings=request.param)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("micro_batch_tokens", [16384, 24])
def test_a_seq2seq_policy_starts_from_ratio_one_and_kl_zero(t5, lora, micro_batch_tokens):
    options = {"ppo_epochs": 1, "old_logprobs": "recompute", "micro_batch_tokens": micro_batch_tokens}
    trainer = tiny_trainer(t5, lora=lora, generation={"temperature": 0.7}, **options)
    stats = trainer.train_step()
    assert stats["objective/kl"] == 0.0
    assert stats["ppo/policy/ratio"] == 1.0
    assert stats["ppo/policy/approxkl"] == 0.0
    assert trainer.train_step()["objective/kl"] != 0.0


def test_seq2seq_logprobs_are_those_of_each_pair_alone(t5):
    for temperature in (1.0, 0.7):
        together = response_logprobs(t5, QUERIES, RESPONSES, temperature=temperature)
        for query, response, ours in zip(QUERIES, RESPONSES, together, strict=True):
            decoder_ids = torch.tensor([[EOS, *response[:-1]]])
            with torch.no_grad():
                logits = t5(input_ids=torch.tensor([query]), decoder_input_ids=decoder_ids).logits[0]
            expected = (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]
            close(ours, expected)  # the first token of the response counts, and padding doesn't


@pytest.mark.parametrize("tokens", [1, 9])
def test_seq2seq_logprobs_do_not_depend_on_their_batch(t5, tokens):
    close(torch.cat(response_logprobs(t5, QUERIES, RESPONSES, micro_batch_tokens=tokens)), scored(t5))
    order = [2, 0, 3, 1]
    shuffled = response_logprobs(t5, [QUERIES[i] for i in order], [RESPONSES[i] for i in order])
    whole = response_logprobs(t5, QUERIES, RESPONSES)
    for place, i in enumerate(order):
        close(shuffled[place], whole[i])


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_what_a_seq2seq_policy_keeps_from_sampling_agrees_with_scoring(t5, batch_size):
    prompts = [row["input_ids"] for row in tiny_prompts()]
    generation = GenerationConfig(max_new_tokens=9, temperature=0.8)
    policy = Policy(t5)
    torch.nn.init.normal_(policy.v_head.summary.weight)
    sampled = sample_responses(
        t5, word_tokenizer(), prompts, generation, seed=7, batch_size=batch_size, value_head=policy.v_head
    )
    assert len({len(response) for response in sampled.response_ids}) > 1  # some ended early and left the batch
    scores = response_logprobs(t5, prompts, sampled.response_ids, temperature=0.8)
    close(torch.cat(sampled.logprobs), torch.cat(scores))
    with torch.no_grad():
        values = policy(arrange(t5, prompts, sampled.response_ids), 0.8)[1]
    close(torch.cat(sampled.values), values)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_reference_of_a_seq2seq_policy_never_changes(t5, lora):
    before = weights(t5)
    trainer = tiny_trainer(t5, lora=lora, learning_rate=0.05)
    start = reference_of(trainer)
    assert len(list(trainer.train())) == 3
    assert torch.equal(reference_of(trainer), start)
    with trainer.policy.reference() as reference:
        frozen = {name.replace(".base_layer", ""): p for name, p in reference.named_parameters() if "lora_" not in name}
    assert same(before, frozen)
    assert not torch.equal(scored(trainer.policy.model), start)


def test_micro_batches_change_no_gradient_of_a_seq2seq_policy():
    gradients = []
    for tokens in (16384, 24):
        trainer = tiny_trainer(tiny_t5(), ppo_epochs=1, max_grad_norm=None, micro_batch_tokens=tokens)
        torch.nn.init.constant_(trainer.policy.v_head.summary.weight, 0.1)
        trainer.train_step()
        gradients.append({n: p.grad.clone() for n, p in trainer.policy.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        atol = 1e-5 * float(gradient.norm()) + 1e-7
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=atol)


# ---------------------------------------------------------------- the top layers alone


@pytest.fixture(params=[tiny_gpt2, tiny_llama], ids=["tied", "untied"])
def build(request):
    """Builds the same model of three blocks anew: GPT-2's head is tied to its embeddings, Llama's is not."""
    layers = {"n_layer": 3} if request.param is tiny_gpt2 else {"num_hidden_layers": 3}
    return lambda: request.param(**layers)


@pytest.mark.parametrize("unfrozen", [1, 2])
def test_frozen_layers_keep_every_bit_and_the_others_learn(build, unfrozen):
    model = build()
    before = weights(model)
    trainer = tiny_trainer(model, policy={"unfrozen_layers": unfrozen}, learning_rate=0.05)
    start = reference_of(trainer)
    assert len(list(trainer.train())) == 3
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    learning = tuple(f".{i}." for i in range(3 - unfrozen, 3)) + ((".ln_f.",) if tied else (".norm.", "lm_head."))
    for name, parameter in model.named_parameters():
        learns = any(part in f".{name}" for part in learning)
        assert torch.equal(parameter, before[name]) != learns, name
    assert torch.equal(reference_of(trainer), start)
    assert not torch.equal(scored(model), start)


def test_a_bottom_run_once_gives_what_the_whole_model_gives(build):
    policy = Policy(build(), unfrozen_layers=1)
    with torch.no_grad():  # away from the start, where policy and reference are the same
        for parameter in policy.trainable():
            parameter.add_(0.1)
    batch = arrange(policy.model, QUERIES, RESPONSES)
    bottom = batch.run_bottom(policy.model, 1)
    results = [policy(batch, 0.7), policy(batch, 0.7, bottom)]
    for whole, shared in zip(*results, strict=True):
        assert torch.equal(whole, shared)
    gradients = [
        torch.autograd.grad(logprobs.sum() + values.sum(), policy.trainable()) for logprobs, values, _ in results
    ]
    for whole, shared in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, whole, rtol=1e-4, atol=1e-5)
    with policy.reference() as reference, torch.no_grad():
        assert torch.equal(batch.states(reference, bottom, 1), batch.states(reference))


@pytest.mark.parametrize("micro_batch_tokens", [16384, 24])
def test_a_step_on_a_shared_bottom_is_that_of_full_forward_passes(build, micro_batch_tokens):
    class Whole(Policy):
        shares_bottom = False

    results = []
    for kind in (Policy, Whole):
        trainer = tiny_trainer(
            build(), policy={"unfrozen_layers": 1}, old_logprobs="recompute", micro_batch_tokens=micro_batch_tokens
        )
        trainer.policy.__class__ = kind
        stats = [{n: v for n, v in s.items() if not n.startswith("time/")} for s in trainer.train()]
        results.append((stats, weights(trainer.policy)))
    (shared, learnt), (whole, expected) = results
    assert shared[0]["objective/kl"] == 0.0
    assert shared[2]["objective/kl"] != 0.0
    for ours, theirs in zip(shared, whole, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    for name, weight in expected.items():
        torch.testing.assert_close(learnt[name], weight, rtol=1e-3, atol=1e-4)


def test_top_layers_of_a_seq2seq_policy():
    model = tiny_t5()
    before = weights(model)
    trainer = tiny_trainer(model, policy={"unfrozen_layers": 1}, learning_rate=0.05, old_logprobs="recompute")
    start = reference_of(trainer)
    stats = list(trainer.train())
    assert stats[0]["objective/kl"] == 0.0
    assert stats[2]["objective/kl"] != 0.0
    for name, parameter in model.named_parameters():
        learns = name.startswith(("decoder.block.1.", "decoder.final_layer_norm."))
        assert torch.equal(parameter, before[name]) != learns, name
    assert torch.equal(reference_of(trainer), start)


def test_no_more_layers_can_learn_than_there_are():
    with pytest.raises(ModelError, match="unfrozen_layers is 2, but GPT2LMHeadModel has 2 blocks: set it to 1 "):
        Policy(tiny_gpt2(), unfrozen_layers=2)


def test_the_advice_on_layers_is_never_refused_in_turn():
    for count in (1, 2, 3, 12):
        with pytest.raises(ModelError) as error:
            count_top(count, count, "the model")
        advised = re.search(r"set it to (\d+)(?: to (\d+))?", str(error.value))
        assert (advised is None) == (count == 1)
        if advised:
            for number in {int(given) for given in advised.groups() if given}:
                assert count_top(number, count, "the model") == number
                assert count_top(-number, count, "the model") == count - number
    with pytest.raises(ModelError, match=r"has 1 block, .*: leave it null, which trains all of it$"):
        count_top(1, 1, "the model")


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_t5])
def test_a_negative_number_of_layers_leaves_the_bottom_ones_frozen(build):
    """trlX freezes decoder.block[:-num_layers_unfrozen], which for -1 of 2 blocks is the first."""
    learns = [
        {name for name, p in Policy(build(), unfrozen_layers=n).model.named_parameters() if p.requires_grad}
        for n in (1, -1)
    ]
    assert learns[0] == learns[1] != set()


# ---------------------------------------------------------------- a critic of its own


def gradients_of_the_policy(critic: bool, vf_coef: float) -> dict[str, torch.Tensor]:
    trainer = tiny_trainer(policy={"critic": critic}, ppo_epochs=1, max_grad_norm=None, vf_coef=vf_coef)
    torch.nn.init.constant_(trainer.policy.v_head.summary.weight, 0.3)
    trainer.learn(given_responses(QUERIES, RESPONSES), SCORES)
    return {name: p.grad.clone() for name, p in trainer.policy.model.named_parameters()}


def test_the_value_loss_reaches_the_policy_only_through_a_shared_trunk():
    assert same(gradients_of_the_policy(True, 0.0), gradients_of_the_policy(True, 100.0))
    assert not same(gradients_of_the_policy(False, 0.0), gradients_of_the_policy(False, 100.0))


def test_a_critic_learns_values_and_starts_as_the_model():
    trainer = tiny_trainer(policy={"critic": True}, learning_rate=0.01, ppo_epochs=20, vf_coef=1.0, kl_coef=0.0)
    critic = trainer.policy.critic
    assert same(weights(critic), weights(trainer.policy.model))
    for _ in range(3):
        stats = trainer.learn(given_responses(QUERIES, RESPONSES), SCORES)
    assert stats["ppo/val/var_explained"] > 0.5
    assert not same(weights(critic), weights(trainer.policy.model))
    stats = trainer.train_step()  # and sampling, which has no values from it
    assert stats["ppo/val/mean"] != 0.0
    assert stats["ppo/policy/ratio"] == pytest.approx(1.0, abs=0.5)


# ---------------------------------------------------------------- adapters


def adapted(dora: bool = False) -> PeftModel:
    """GPT-2 under an adapter that changes it already."""
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_gpt2(), peft.LoraConfig(r=4, task_type="CAUSAL_LM", use_dora=dora, lora_dropout=0.0, fan_in_fan_out=True)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_policy_that_starts_from_an_adapter_has_that_adapter_as_reference(dora):
    model = adapted(dora)
    start = scored(model.get_base_model())
    trainer = tiny_trainer(model, learning_rate=0.05, ppo_epochs=1, old_logprobs="recompute")
    names = {name for name, p in trainer.policy.named_parameters() if p.requires_grad}
    assert names
    assert not any("reference" in name for name in names)
    assert torch.equal(reference_of(trainer), start)
    assert {name for name, p in trainer.policy.named_parameters() if p.requires_grad} == names
    stats = list(trainer.train())
    assert stats[0]["objective/kl"] == 0.0
    assert stats[0]["ppo/policy/ratio"] == 1.0
    assert stats[2]["objective/kl"] != 0.0
    assert torch.equal(reference_of(trainer), start)
    assert not torch.equal(scored(trainer.policy.model), start)


def test_the_reference_of_an_adapter_may_be_its_base():
    base = scored(tiny_gpt2())
    trainer = tiny_trainer(adapted(), policy={"reference": "base"}, ppo_epochs=1)
    assert torch.equal(reference_of(trainer), base)
    assert trainer.train_step()["objective/kl"] != 0.0


def test_an_adapter_that_starts_at_zero_has_its_base_as_reference():
    model = get_peft_model(tiny_gpt2(), peft.LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True))
    policy = Policy(model)
    assert not any("reference" in name for name, _ in policy.named_parameters())


def test_a_policy_from_an_adapter_saves_what_it_has_learnt(tmp_path):
    trainer = tiny_trainer(adapted(), learning_rate=0.05)
    trainer.train_step()
    trainer.policy.save_pretrained(tmp_path, trainer.tokenizer)
    torch.testing.assert_close(
        scored(type(tiny_gpt2()).from_pretrained(tmp_path)), scored(trainer.policy.model), rtol=1e-4, atol=1e-4
    )


def test_dora_starts_from_the_model_and_leaves_it_alone():
    model = tiny_llama()
    start = scored(model)
    trainer = tiny_trainer(
        model, lora=LoraConfig(r=4, alpha=8, dora=True), learning_rate=0.05, ppo_epochs=1, old_logprobs="recompute"
    )
    close(scored(trainer.policy.model), start)
    before = weights(trainer.policy)
    stats = list(trainer.train())
    assert abs(stats[0]["objective/kl"]) < 1e-4  # its magnitudes divide what they multiply, which rounds
    assert torch.equal(reference_of(trainer), start)
    moved = {name for name, p in trainer.policy.named_parameters() if not torch.equal(p, before[name])}
    assert any("lora_magnitude_vector" in name for name in moved)
    assert all("lora_" in name or name.startswith("v_head.") for name in moved)


# ---------------------------------------------------------------- gradient checkpointing


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        (tiny_gpt2, {}),
        (tiny_llama, {}),
        (tiny_t5, {}),
        (tiny_gpt2, {"lora": LORA}),
        (tiny_gpt2, {"policy": {"critic": True}}),
        (tiny_gpt2, {"policy": {"unfrozen_layers": 1}}),
    ],
    ids=["gpt2", "llama", "t5", "lora", "critic", "top"],
)
def test_recomputed_activations_give_the_same_weights(architecture, options):
    learnt, statistics = [], []
    for recompute in (False, True):
        policy = options.get("policy", {}) | {"gradient_checkpointing": recompute}
        trainer = tiny_trainer(architecture(), **options | {"policy": policy})
        recomputed = count_recomputations(trainer.policy.model)
        statistics.append({n: v for n, v in trainer.train_step().items() if not n.startswith("time/")})
        learnt.append(weights(trainer.policy))
        assert bool(recomputed) == recompute
    assert statistics[0] == statistics[1]
    assert same(*learnt)


def count_recomputations(model) -> list[None]:
    """Grows when a block of the model runs while a backward pass is under way."""
    seen: list[None] = []

    def note(*_) -> None:
        if torch._C._current_graph_task_id() != -1:
            seen.append(None)

    for name, module in model.named_modules():
        if name.endswith(("attn", "self_attn", "SelfAttention")):
            module.register_forward_pre_hook(note)
    return seen
