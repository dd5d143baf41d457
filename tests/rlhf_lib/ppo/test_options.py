"""Every option of PPO does what it says: updates, schedules, scores, KL control, the loop and its errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_models import (
    EOS,
    count_steps,
    given_responses,
    one_thread,  # noqa: F401
    remainder_reward,
    same,
    tiny_gpt2,
    tiny_trainer,
    weights,
    word_tokenizer,
)
from transformers import GraniteConfig, GraniteForCausalLM

from rlhf_lib.errors import ModelError, RLHFError, SettingsError
from rlhf_lib.models.logprobs import check_head, response_logprobs
from rlhf_lib.ppo.batch import Batch
from rlhf_lib.ppo.statistics import UpdateStatistics
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.recipe import GenerationConfig, PPOConfig

# ---------------------------------------------------------------- updates


def test_mini_batch_statistics_are_unweighted_means_and_epochs_are_permuted():
    trainer = tiny_trainer(batch_size=8, mini_batch_size=2, ppo_epochs=3)
    norms = count_steps(trainer)
    orders = [trainer.minibatch_order(epoch, 8).tolist() for epoch in range(3)]
    trainer.train_step()
    assert len(norms) == 3 * 4
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert trainer.minibatch_order(0, 8).tolist() != orders[0]  # the next step's


def gradients(trainer: PPOTrainer) -> list[torch.Tensor]:
    """A list that grows with each optimizer step by the gradient which it is given, flat."""
    found: list[torch.Tensor] = []

    def note(optimizer, args, kwargs) -> None:
        found.append(
            torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]).double()
        )

    trainer.optimizer.register_step_pre_hook(note)
    return found


@pytest.mark.parametrize("micro_batch_tokens", [4096, 8], ids=["whole", "accumulated"])
@pytest.mark.parametrize("responses", [[4, 1, 2, 3, 2], [3, 3, 3, 3, 3]], ids=["unequal", "equal"])
def test_a_token_of_a_smaller_last_mini_batch_weighs_as_much_as_another(responses, micro_batch_tokens):
    """5 = 3 + 2: per token 1/N in the full one, N its own tokens; B / (m N_B) in the other, N_B the batch's tokens."""
    given = given_responses([[1, 2]] * 5, [[3 + i] * length for i, length in enumerate(responses)])
    settings = {"ppo_epochs": 1, "learning_rate": 0.0, "max_grad_norm": None, "micro_batch_tokens": micro_batch_tokens}
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])
    whole = tiny_trainer(batch_size=5, **settings)
    total = gradients(whole)
    whole.learn(given, scores)
    cut = tiny_trainer(batch_size=5, mini_batch_size=3, **settings)
    parts, order = gradients(cut), cut.minibatch_order(0, 5)
    cut.learn(given, scores)
    full = sum(responses[i] for i in order[:3])
    expected = sum(responses) * total[0]
    assert len(parts) == 2
    torch.testing.assert_close(full * parts[0] + 3 / 5 * sum(responses) * parts[1], expected, rtol=1e-4, atol=1e-4)


def test_the_statistics_of_a_smaller_last_mini_batch_weigh_less():
    """Of 12 tokens 5 are in the last, of 2 rows: 5/12 of the tokens, where 3/5 would be a full one's."""
    batch = Batch.of([[1]] * 5, [[1] * 4, [1], [1] * 2, [1] * 3, [1] * 2], torch.device("cpu"))
    assert batch.weight(np.array([0, 1, 2]), 3) == 1.0
    weight = batch.weight(np.array([3, 4]), 3)
    assert weight == pytest.approx(25 / 36)
    assert batch.weight(np.arange(5), 8) == 1.0  # a batch smaller than a mini-batch is one, and whole
    told = UpdateStatistics()
    told.add({"loss": torch.tensor(1.0), "norm": torch.tensor(2.0)}, 1.0)
    told.add({"loss": torch.tensor(4.0)}, 0.5)
    assert told.means() == pytest.approx({"loss": (1.0 + 0.5 * 4.0) / 1.5, "norm": 2.0})
    assert told.last("loss") == 0.5 * 4.0 + 0.5 * 1.0  # what early stopping goes by
    told.add({"loss": torch.tensor(8.0)}, 1.0)
    assert told.last("loss") == 8.0


def test_a_batch_that_divides_is_updated_as_it_always_was():
    trainer = tiny_trainer(batch_size=8, mini_batch_size=4, max_grad_norm=None)
    means, found = [], gradients(trainer)
    update = trainer.update
    trainer.update = lambda batch, rows: means.append(update(batch, rows)) or means[-1]
    stats = trainer.train_step()
    assert len(found) == 4
    for name in means[0]:
        expected = float(torch.stack([told[name] for told in means]).mean())
        assert name == "ppo/val/var_explained" or stats[name] == expected


def test_a_mini_batch_is_no_larger_than_the_batch():
    assert len(list(tiny_trainer(batch_size=8, mini_batch_size=5, steps=1).train())) == 1
    with pytest.raises(SettingsError, match=r"PPOConfig: mini_batch_size \(9\) is more than batch_size \(8\)"):
        PPOConfig(batch_size=8, mini_batch_size=9)


def test_gradients_are_clipped_at_every_step():
    trainer = tiny_trainer(mini_batch_size=4, max_grad_norm=1e-3)
    norms = count_steps(trainer)
    stats = list(trainer.train())
    assert len(norms) == 3 * 2 * 2
    assert norms == pytest.approx([1e-3] * 12, rel=1e-2)
    assert all(s["ppo/grad_norm"] > 1e-2 for s in stats)  # as it was before


def test_no_clipping_where_it_is_off():
    trainer = tiny_trainer(mini_batch_size=4, max_grad_norm=None)
    norms = count_steps(trainer)
    trainer.train_step()
    assert max(norms) > 1e-2


def test_a_skipped_mini_batch_steps_nothing():
    trainer = tiny_trainer(old_logprobs="sampling", ratio_threshold=2.0)
    norms = count_steps(trainer)
    assert trainer.train_step()["ppo/policy/skipped"] == 0.0  # Adam has momentum now
    queries, responses = [[5, 9, 2], [7]], [[3, 8, 1], [2, 6]]
    logprobs = response_logprobs(trainer.policy.model, queries, responses)
    before, steps = weights(trainer.policy), len(norms)
    stats = trainer.learn(
        given_responses(queries, responses, [lp - math.log(3) for lp in logprobs]), torch.tensor([1.0, -1.0])
    )
    assert stats["ppo/policy/ratio"] == pytest.approx(3.0, rel=1e-4)
    assert stats["ppo/policy/skipped"] == 1.0
    assert len(norms) == steps
    assert same(weights(trainer.policy), before)


def test_updates_stop_when_the_policy_has_moved_too_far():
    far = tiny_trainer(ppo_epochs=4, learning_rate=0.1, target_kl=1e-3)
    steps = count_steps(far)
    far.train_step()
    assert len(steps) == 2  # the first epoch starts from ratio 1, the second one sees how far it went
    near = tiny_trainer(ppo_epochs=4, learning_rate=0.1, target_kl=1e6)
    steps = count_steps(near)
    near.train_step()
    assert len(steps) == 4


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 2, [1 / 3, 2 / 3, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 2, [1 / 3, 2 / 3, 1, 0.5]),
        ("cosine", 0, [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]),
    ],
)
def test_schedules(schedule, warmup, factors):
    trainer = tiny_trainer(steps=4, schedule=schedule, warmup_steps=warmup, learning_rate=0.01, ppo_epochs=1)
    rates = [stats["ppo/learning_rate"] for stats in trainer.train()]
    assert rates == pytest.approx([0.01 * factor for factor in factors])


@pytest.mark.parametrize(("steps", "warmup"), [(3, 0), (19, 0), (20, 1), (50, 2), (100, 5), (20_000, 10)])
def test_warm_up_is_a_twentieth_of_the_steps_unless_set(steps, warmup):
    assert PPOConfig(steps=steps).warmup == warmup
    assert PPOConfig(steps=steps, warmup_steps=0).warmup == 0
    assert PPOConfig(steps=steps, warmup_steps=7).warmup == 7


# ---------------------------------------------------------------- scores and KL


def test_adaptive_kl_coefficient_moves_after_each_step_and_a_fixed_one_stays():
    trainer = tiny_trainer(kl_coef=0.3, kl_target=2.0, kl_horizon=40, learning_rate=0.05)
    expected = 0.3
    for stats in trainer.train():
        assert stats["objective/kl_coef"] == pytest.approx(expected)  # the one this step used
        expected *= 1 + min(max(stats["objective/kl"] / 2.0 - 1, -0.2), 0.2) * 8 / 40
    assert expected != pytest.approx(0.3)
    fixed = tiny_trainer(kl_coef=0.3, kl_controller="fixed", learning_rate=0.05)
    assert {stats["objective/kl_coef"] for stats in fixed.train()} == {0.3}


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_is_charged_in_the_reward(estimator):
    in_reward = list(tiny_trainer(kl_estimator=estimator, learning_rate=0.05).train())[-1]
    assert in_reward["ppo/mean_non_score_reward"] == pytest.approx(
        -in_reward["objective/kl_coef"] * in_reward["objective/kl"] / in_reward["tokens/responses_len_mean"], rel=1e-4
    )
    assert "ppo/loss/kl" not in in_reward


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_is_charged_in_the_loss(estimator):
    in_loss = list(tiny_trainer(kl_in="loss", kl_estimator=estimator, learning_rate=0.05).train())[-1]
    assert in_loss["ppo/mean_non_score_reward"] == 0.0
    assert in_loss["ppo/loss/total"] == pytest.approx(
        in_loss["ppo/loss/policy"]
        + 0.1 * in_loss["ppo/loss/value"]
        + in_loss["objective/kl_coef"] * in_loss["ppo/loss/kl"],
        rel=1e-4,
    )


def test_k1_has_no_gradient_to_charge_in_the_loss():
    with pytest.raises(SettingsError, match="set k2, or kl_in: reward"):
        PPOConfig(kl_in="loss", kl_estimator="k1")


def test_scores_are_normalised_scaled_clipped_and_fined_in_that_order():
    scores, queries, responses = torch.tensor([10.0, 14.0, 6.0]), [[5], [6], [7]], [[1, 2], [3], [4, EOS]]

    def paid(constants=(0.0, 1.0), generation=None, **ppo) -> tuple[float, float]:
        trainer = tiny_trainer(score_constants=constants, generation=generation, ppo_epochs=1, **ppo)
        sampled = given_responses(queries, responses)
        sampled.ended = [True, False, True]
        stats = trainer.learn(sampled, scores)
        assert (stats["ppo/mean_scores"], stats["ppo/std_scores"]) == (10.0, 4.0)  # always as the reward gave them
        return pytest.approx(stats["ppo/mean_shaped_scores"], abs=1e-6), pytest.approx(stats["ppo/std_shaped_scores"])

    assert paid() == (10.0, 4.0)
    assert paid(constants=(6.0, 2.0)) == (2.0, 2.0)
    assert paid(scale_scores=True) == (2.5, 1.0)
    assert paid(scale_scores=True, normalize_scores=True) == (0.0, 1.0)
    assert paid(clip_scores=12.0) == (pytest.approx(28 / 3), pytest.approx(math.sqrt(28 / 3)))
    assert paid(generation={"missing_eos_penalty": 3.0}) == (9.0, pytest.approx(math.sqrt(7)))
    assert paid(clip_scores=12.0, generation={"missing_eos_penalty": 3.0})[0] == pytest.approx(25 / 3)


def test_running_moments_go_on_from_step_to_step():
    trainer = tiny_trainer(scale_scores=True, normalize_scores=True)
    queries, responses = [[5], [6]], [[1, 2], [3]]
    trainer.learn(given_responses(queries, responses), torch.tensor([1.0, 3.0]))
    stats = trainer.learn(given_responses(queries, responses), torch.tensor([5.0, 7.0]))
    std = math.sqrt(20 / 3)  # of 1, 3, 5, 7, whose mean is 4
    assert stats["ppo/mean_shaped_scores"] == pytest.approx(2 / std, rel=1e-5)


def test_a_missing_eos_is_fined_in_training():
    trainer = tiny_trainer(generation={"missing_eos_penalty": 2.0, "max_new_tokens": 30})
    for stats in trainer.train():
        cut = 1 - stats["tokens/eos_rate"]
        assert stats["ppo/mean_scores"] - stats["ppo/mean_shaped_scores"] == pytest.approx(2.0 * cut, abs=1e-5)


class EndsReward:
    """Pays for texts that ended, and notes what it was told."""

    reads_ends = True

    def __init__(self) -> None:
        self.told: list[bool] = []

    def __call__(self, queries, responses, *, ended=None):
        self.told += ended
        return [float(whole) for whole in ended]


def test_a_reward_that_reads_ends_is_told_in_training_and_evaluation():
    reward = EndsReward()
    trainer = tiny_trainer(reward=reward, generation={"max_new_tokens": 30})
    stats = trainer.train_step()
    assert len(reward.told) == 8
    assert {True, False} == set(reward.told)
    assert stats["ppo/mean_scores"] == pytest.approx(stats["tokens/eos_rate"]) == sum(reward.told) / 8
    found = trainer.evaluate([row["query"] for row in trainer.prompts])
    assert found.stats["eval/mean_scores"] == sum(reward.told[8:]) / len(trainer.prompts)


# ---------------------------------------------------------------- the loop


def test_prompts_come_once_an_epoch_in_a_fresh_order():
    trainer = tiny_trainer(batch_size=4)
    seen = []
    for trainer.step in range(6):
        seen += [tuple(row["input_ids"]) for row in trainer._next_rows()]
    every = sorted(tuple(row["input_ids"]) for row in trainer.prompts)
    assert sorted(seen[:12]) == sorted(seen[12:]) == every
    assert seen[:12] != seen[12:]


def test_a_batch_may_be_larger_than_the_prompts():
    trainer = tiny_trainer(batch_size=20, steps=1)
    assert len(list(trainer.train())) == 1
    assert len(trainer.samples) == 20


def test_training_stops_at_the_threshold_of_the_mean_score():
    trainer = tiny_trainer(
        reward=lambda queries, responses: [float(trainer.step)] * len(queries), steps=5, stop_at_reward=1.0
    )
    assert [stats["ppo/mean_scores"] for stats in trainer.train()] == [0.0, 1.0]


def test_the_reward_sees_queries_and_responses_as_text_and_samples_keep_them():
    calls = []

    def reward(queries, responses):
        calls.append((queries, responses))
        return remainder_reward(queries, responses)

    trainer = tiny_trainer(reward=reward, steps=1)
    stats = trainer.train_step()
    (queries, responses), *_ = calls
    assert [(s["query"], s["response"]) for s in trainer.samples] == list(zip(queries, responses, strict=True))
    assert [s["score"] for s in trainer.samples] == pytest.approx(remainder_reward(queries, responses))
    assert stats["ppo/mean_scores"] == pytest.approx(sum(remainder_reward(queries, responses)) / 8, abs=1e-6)
    assert all(query in {row["query"] for row in trainer.prompts} for query in queries)


# ---------------------------------------------------------------- what a user can fix


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_named_and_nothing_learnt(bad):
    def reward(queries, responses):
        return [bad if i == 3 else 0.0 for i in range(len(queries))]

    trainer = tiny_trainer(reward=reward)
    before = weights(trainer.policy)
    with pytest.raises(RLHFError, match=rf"the reward at step 0 gave {bad} for the query 'w.*with the response"):
        trainer.train_step()
    assert same(weights(trainer.policy), before)
    assert trainer.step == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.0] * 7, "gave 7 scores for 8 responses"),
        (None, "gave None: it must give a list of numbers, one for each response"),
        ("12345678", "gave '12345678': it must give a list of numbers"),
        (1.0, "gave 1.0: it must give a list"),
        ({"scores": [0.0] * 8}, "gave .*it must give a list"),
        ([0.0] * 7 + [None], "gave None for the query 'w.*with the response"),
        ([0.0] * 7 + ["1.0"], "gave '1.0' for the query"),
    ],
    ids=str,
)
def test_what_is_no_score_for_each_response_is_named(given, message):
    with pytest.raises(ModelError, match=f"the reward at step 0 {message}") as error:
        tiny_trainer(reward=lambda queries, responses: given).train_step()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor, iter, lambda s: [torch.tensor([x]) for x in s]])
def test_scores_may_come_as_any_row_of_numbers(kind):
    trainer = tiny_trainer(reward=lambda queries, responses: kind([1.0, 2.0] * 4))
    assert trainer.train_step()["ppo/mean_scores"] == 1.5


@pytest.mark.parametrize(("prompts", "message"), [([], "no prompts"), ([{"query": "", "input_ids": []}], "no tokens")])
def test_prompts_that_cannot_be_continued_are_refused(prompts, message):
    trainer = tiny_trainer()
    with pytest.raises(RLHFError, match=message):
        PPOTrainer(trainer.policy, word_tokenizer(), remainder_reward, prompts, PPOConfig(), GenerationConfig())


def test_a_model_that_changes_its_logits_after_the_head_is_refused():
    scaled = GraniteForCausalLM(
        GraniteConfig(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            logits_scaling=8.0,
            eos_token_id=EOS,
            pad_token_id=None,
            bos_token_id=None,
        )
    )
    with pytest.raises(ModelError, match="GraniteForCausalLM changes its logits"):
        tiny_trainer(scaled)


def test_a_first_prompt_of_nearly_all_positions_is_no_obstacle():
    check_head(tiny_gpt2(), [5] * 60)
