"""What must hold of a PPO step whatever the model: GPT-2 (learnt positions) and rotary ones, tiny and random."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import (
    EOS,
    given_responses,
    one_thread,  # noqa: F401
    same,
    tiny_gpt2,
    tiny_llama,
    tiny_qwen2,
    tiny_trainer,
    weights,
)

from rlhf_lib.models.logprobs import response_logprobs
from rlhf_lib.ppo.rollout import sampling_agrees
from rlhf_lib.recipe import LoraConfig

LORA = LoraConfig(r=4, alpha=8)


@pytest.fixture(params=[tiny_gpt2, tiny_llama, tiny_qwen2], ids=lambda build: build.__name__.removeprefix("tiny_"))
def build(request):
    """Builds the same model anew at each call."""
    return request.param


@pytest.fixture
def model(build):
    return build()


# ---------------------------------------------------------------- the start: ratio 1 and KL 0


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("micro_batch_tokens", [16384, 24])
def test_ratio_is_one_and_kl_zero_before_the_first_update(model, lora, micro_batch_tokens):
    trainer = tiny_trainer(
        model,
        lora=lora,
        generation={"temperature": 0.7},
        ppo_epochs=1,
        old_logprobs="recompute",
        micro_batch_tokens=micro_batch_tokens,
    )
    stats = trainer.train_step()
    assert stats["objective/kl"] == 0.0
    assert stats["ppo/policy/ratio"] == 1.0
    assert stats["ppo/policy/approxkl"] == 0.0
    assert stats["ppo/policy/clipfrac"] == 0.0


def test_later_steps_start_from_ratio_one_too(model):
    trainer = tiny_trainer(model, ppo_epochs=1, old_logprobs="recompute", learning_rate=0.05)
    for stats in trainer.train():
        assert stats["ppo/policy/approxkl"] == 0.0
    assert stats["objective/kl"] != 0.0


def test_no_pass_has_dropout():
    model = tiny_gpt2(resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5).train()
    trainer = tiny_trainer(model, old_logprobs="recompute", ppo_epochs=1)
    for stats in trainer.train():
        assert stats["ppo/policy/approxkl"] == 0.0
        assert not any(module.training for module in trainer.policy.modules())


def test_logprobs_kept_while_sampling_start_within_tolerance(model):
    trainer = tiny_trainer(model, ppo_epochs=1, old_logprobs="sampling", learning_rate=0.0)
    for stats in trainer.train():
        assert stats["ppo/old_logprobs_reused"] == 1.0
        assert stats["ppo/policy/approxkl"] < 0.5 * 1e-4**2
        assert abs(stats["objective/kl"]) < 7e-4


def test_the_first_batch_decides_on_reuse(model):
    trainer = tiny_trainer(model)
    assert trainer.reuse_sampled is None
    trainer.train_step()
    assert trainer.reuse_sampled is True
    off = tiny_trainer(tiny_gpt2())
    sampled = given_responses([[5, 9]], [[3, 4, 7]], [torch.tensor([-1.0, -2.0, -3.0])])
    stats = off.learn(sampled, torch.tensor([1.0]))
    assert off.reuse_sampled is False
    assert stats["ppo/old_logprobs_reused"] == 0.0


def test_logprobs_that_come_without_values_are_computed_anew(model):
    trainer = tiny_trainer(model, old_logprobs="sampling", learning_rate=0.0)
    sampled = given_responses([[5, 9]], [[3, 4, 7]], [torch.tensor([-1.0, -2.0, -3.0])])
    trainer.learn(replace(sampled, values=[]), torch.tensor([1.0]))
    torch.testing.assert_close(trainer.batch.logprobs_BT[0], response_logprobs(model, [[5, 9]], [[3, 4, 7]])[0])


def test_sampling_agrees_within_1e_4_in_fp32_and_never_in_bf16():
    assert sampling_agrees(torch.tensor([9e-5, -9e-5]), torch.float32)
    assert not sampling_agrees(torch.tensor([0.0, 2e-4]), torch.float32)
    assert not sampling_agrees(torch.zeros(3), torch.bfloat16)


# ---------------------------------------------------------------- masks


def test_an_eos_inside_a_response_is_a_token_like_others(build, model):
    """EOS is the pad id of most set-ups, and id 0 what rows are filled with; it must count wherever it stands."""
    queries, responses = [[EOS, 5], [7]], [[3, EOS, EOS, 4, EOS], [2]]
    trainer = tiny_trainer(model, ppo_epochs=1, kl_coef=0.0)
    stats = trainer.learn(given_responses(queries, responses), torch.tensor([1.0, -1.0]))
    assert stats["tokens/responses_len_mean"] == 3.0
    logprobs = response_logprobs(build(), queries, responses)
    assert stats["objective/entropy"] == pytest.approx(-float(torch.cat(logprobs).sum()) / 2, rel=1e-5)
    # values start at 0, so gamma = lam = 1 gives every token of a response its score as return: (5 - 1) / 6
    exact = tiny_trainer(build(), ppo_epochs=1, kl_coef=0.0, lam=1.0)
    stats = exact.learn(given_responses(queries, responses), torch.tensor([1.0, -1.0]))
    assert stats["ppo/returns/mean"] == pytest.approx(4 / 6, abs=1e-6)


def test_the_pad_token_changes_nothing(build):
    results = []
    for pad in (None, "<eos>", "w17"):
        trainer = tiny_trainer(build())
        trainer.tokenizer.pad_token = pad
        stats = trainer.train_step()
        results.append({name: value for name, value in stats.items() if not name.startswith("time/")})
    assert results[0] == results[1] == results[2]


# ---------------------------------------------------------------- temperature


def test_temperature_divides_in_every_pass(model):
    queries, responses = [[5, 9, 2], [7]], [[3, 8, 1], [2, 6]]
    trainer = tiny_trainer(model, generation={"temperature": 0.5}, ppo_epochs=1, learning_rate=0.0)
    stats = trainer.learn(given_responses(queries, responses), torch.tensor([1.0, -1.0]))
    logprobs, entropies = [], []
    with torch.no_grad():
        for query, response in zip(queries, responses, strict=True):
            logits = model(input_ids=torch.tensor([query + response])).logits[0, len(query) - 1 : -1] / 0.5
            logprobs.append(logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None]))
            entropies.append(torch.distributions.Categorical(logits=logits).entropy())
    assert stats["objective/entropy"] == pytest.approx(-float(torch.cat(logprobs).sum()) / 2, rel=1e-5)
    assert stats["ppo/policy/entropy"] == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-5)
    assert stats["ppo/policy/ratio"] == 1.0
    assert stats["objective/kl"] == 0.0


# ---------------------------------------------------------------- the reference


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_reference_never_changes(model, lora):
    before = weights(model)
    trainer = tiny_trainer(model, lora=lora, learning_rate=0.05)
    queries, responses = [[5, 9, 2]], [[3, 8, 1, 2]]
    with trainer.policy.reference() as reference:
        start = response_logprobs(reference, queries, responses)[0]
    assert len(list(trainer.train())) == 3
    with trainer.policy.reference() as reference:
        assert torch.equal(response_logprobs(reference, queries, responses)[0], start)
        frozen = {name.replace(".base_layer", ""): p for name, p in reference.named_parameters() if "lora_" not in name}
    assert same(before, frozen)
    assert not torch.equal(response_logprobs(trainer.policy.model, queries, responses)[0], start)


# ---------------------------------------------------------------- accumulation


@pytest.mark.parametrize("kl", [{"kl_in": "reward"}, {"kl_in": "loss", "kl_estimator": "k2"}], ids=["reward", "loss"])
def test_micro_batches_change_no_gradient(build, kl):
    gradients, statistics = [], []
    for tokens in (16384, 24, 1):
        trainer = tiny_trainer(build(), ppo_epochs=1, max_grad_norm=None, micro_batch_tokens=tokens, **kl)
        with torch.no_grad():  # else values are 0 and KL is: neither would show
            trainer.policy.v_head.summary.weight.normal_(generator=torch.Generator().manual_seed(1))
            trainer.policy.model.get_output_embeddings().weight.add_(0.05)
        statistics.append(trainer.train_step())
        gradients.append({n: p.grad.clone() for n, p in trainer.policy.named_parameters() if p.requires_grad})
    for other, stats in zip(gradients[1:], statistics[1:], strict=True):
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.norm()) + 1e-7)
        for name, value in statistics[0].items():
            if not name.startswith("time/"):
                assert stats[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


# ---------------------------------------------------------------- seeds


def test_the_same_seed_gives_the_same_run_bit_for_bit(build):
    def run(seed: int, **ppo):
        trainer = tiny_trainer(build(), seed=seed, mini_batch_size=4, **ppo)
        stats = [{n: v for n, v in s.items() if not n.startswith("time/")} for s in trainer.train()]
        return weights(trainer.policy), stats

    first, again, other = run(0), run(0), run(1)
    assert same(first[0], again[0])
    assert first[1] == again[1]
    assert not same(first[0], other[0])
