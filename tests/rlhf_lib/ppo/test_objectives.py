"""PPO's pure functions against values computed by hand."""

from __future__ import annotations

from math import e, log

import pytest
import torch

from rlhf_lib.ppo.objectives import (
    AdaptiveKL,
    FixedKL,
    RunningMoments,
    gae,
    kl_controller,
    kl_estimate,
    masked_mean,
    masked_var,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from rlhf_lib.recipe import PPOConfig

MASK = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
X = torch.tensor([[1.0, 2, 99], [3, -99, 7]])


def close(actual: torch.Tensor, expected: list) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- advantages


def test_masked_moments_see_real_tokens_only():
    assert masked_mean(X, MASK).item() == 2.0
    assert masked_var(X, MASK).item() == 1.0  # (1 + 0 + 1) / (3 - 1)


def test_masked_variance_of_one_token_is_zero():
    assert masked_var(torch.tensor([[5.0, 3.0]]), torch.tensor([[1.0, 0.0]])).item() == 0.0


def test_whitened_advantages_lose_their_mean():
    close(whiten(2 * X, MASK), [[-1.0, 0, 0], [1, 0, 0]])


def test_whitened_rewards_keep_their_mean_and_padding_stays_zero():
    close(whiten(2 * X, MASK, shift_mean=False), [[3.0, 4, 0], [5, 0, 0]])  # mean 4, std 2


def test_the_score_is_paid_at_the_last_real_token():
    penalty = torch.tensor([[0.1, 0.2, 0.3], [0.4, 99, 99]])
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    close(token_rewards(torch.tensor([1.0, -2.0]), penalty, mask), [[-0.1, -0.2, 0.7], [-2.4, 0, 0]])


def test_gae_by_hand():
    values = torch.tensor([[1.0, 2, 4], [3, 99, 99]])
    rewards = torch.tensor([[0.0, 0, 8], [5, 99, 99]])
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    advantages, returns = gae(values, rewards, mask, gamma=0.5, lam=0.5)
    # deltas 0 + 0.5*2 - 1, 0 + 0.5*4 - 2, 8 - 4; each advantage adds a quarter of the next one
    close(advantages, [[0.25, 1.0, 4.0], [2.0, 0, 0]])
    close(returns, [[1.25, 3.0, 8.0], [5.0, 0, 0]])


def test_gae_with_lambda_one_is_the_return_less_the_value():
    values = torch.tensor([[0.5, -1.0, 2.0]])
    advantages, returns = gae(values, torch.tensor([[1.0, 2, 3]]), torch.ones(1, 3), gamma=1.0, lam=1.0)
    close(returns, [[6.0, 5.0, 3.0]])
    close(advantages, [[5.5, 6.0, 1.0]])


def test_gae_with_lambda_zero_is_the_one_step_error():
    values = torch.tensor([[0.5, -1.0, 2.0]])
    advantages, _ = gae(values, torch.tensor([[1.0, 2, 3]]), torch.ones(1, 3), gamma=1.0, lam=0.0)
    close(advantages, [[-0.5, 5.0, 1.0]])


# ---------------------------------------------------------------- losses


def test_policy_loss_by_hand():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0])
    advantages = torch.tensor([1.0, -1, 1, -1, 2])
    old = torch.full((5,), -3.0)
    logprobs = (old + ratio.log()).requires_grad_()
    loss, sums = policy_loss(logprobs, old, advantages, cliprange=0.2)
    # a gain is clipped at 1.2 and 0.8, a loss never is: -1.2 + 1.5 - 0.5 + 0.8 - 2
    assert loss.item() == pytest.approx(-1.4, abs=1e-5)
    assert sums["ratio"].item() == pytest.approx(5.0, abs=1e-5)
    assert sums["approxkl"].item() == pytest.approx(log(1.5) ** 2 + log(2) ** 2, abs=1e-5)
    assert sums["policykl"].item() == pytest.approx(2 * log(4 / 3), abs=1e-5)
    assert sums["clipfrac"].item() == 2
    loss.backward()
    close(logprobs.grad, [0.0, 1.5, -0.5, 0.0, -2.0])  # -A r where it isn't clipped


def test_value_loss_by_hand():
    values = torch.tensor([1.0, 0.1, -1.0], requires_grad=True)
    loss, sums = value_loss(values, torch.zeros(3), torch.tensor([2.0, 0.5, 0.0]), cliprange_value=0.2)
    # squared errors 1, 0.16, 1; of the clipped values 0.2, 0.1, -0.2 they are 3.24, 0.16, 0.04
    assert loss.item() == pytest.approx(0.5 * (3.24 + 0.16 + 1), abs=1e-6)
    assert sums["error"].item() == pytest.approx(2.16, abs=1e-6)
    assert sums["vpred"].item() == pytest.approx(0.1, abs=1e-6)
    assert sums["clipfrac"].item() == 1
    loss.backward()
    close(values.grad, [0.0, -0.4, -1.0])


# ---------------------------------------------------------------- KL


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [log(2), -log(2), 0.0]),
        ("k2", [log(2) ** 2 / 2, log(2) ** 2 / 2, 0.0]),
        ("k3", [log(2) - 0.5, 1 - log(2), 0.0]),
    ],
)
def test_kl_estimators_by_hand(estimator, expected):
    logprobs = torch.tensor([0.5, 0.25, 0.3]).log()
    reference = torch.tensor([0.25, 0.5, 0.3]).log()
    close(kl_estimate(logprobs, reference, estimator), expected)


def test_k1_and_k3_are_unbiased():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.25, 0.5])
    exact = (p * (p / q).log()).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((p * kl_estimate(p.log(), q.log(), estimator)).sum(), exact)


def test_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


@pytest.mark.parametrize(("kl", "error"), [(12.0, 0.2), (6.6, 0.1), (6.0, 0.0), (0.0, -0.2), (-3.0, -0.2)])
def test_adaptive_controller_moves_by_the_clipped_error(kl, error):
    controller = AdaptiveKL(value=0.2, target=6.0, horizon=10_000)
    controller.update(kl, responses=128)
    assert controller.value == pytest.approx(0.2 * (1 + error * 0.0128), rel=1e-12)


@pytest.mark.parametrize(("steps", "batch"), [(50, 96), (100, 128), (20_000, 64), (7, 8)])
def test_by_default_the_coefficient_can_follow_the_kl_in_a_run_of_any_length(steps, batch):
    """At its limit the error multiplies the coefficient by e in a quarter of the run; a short one's by 1.2 a step."""
    controller = kl_controller(PPOConfig(steps=steps, batch_size=batch, kl_coef=0.2))
    for _ in range(steps // 4):
        controller.update(100.0, batch)
    assert controller.value / 0.2 == pytest.approx(e if steps >= 50 else 1.2 ** (steps // 4), rel=0.1)
    assert kl_controller(PPOConfig(steps=steps, batch_size=batch, kl_horizon=10_000)).horizon == 10_000


def test_fixed_controller_stays():
    controller = FixedKL(0.2)
    controller.update(100.0, responses=128)
    assert controller.value == 0.2


# ---------------------------------------------------------------- moments


def test_running_moments_are_those_of_all_values_so_far():
    moments = RunningMoments()
    assert moments.std == 1.0
    moments.update(torch.tensor([1.0, 3.0]))
    assert (moments.mean, moments.std) == (2.0, pytest.approx(2**0.5))
    moments.update(torch.tensor([5.0]))
    assert (moments.count, moments.mean, moments.std) == (3, pytest.approx(3.0), pytest.approx(2.0))


def test_running_moments_of_one_value_scale_nothing():
    moments = RunningMoments()
    moments.update(torch.tensor([4.0]))
    assert (moments.mean, moments.std) == (4.0, 1.0)


def test_running_moments_agree_with_the_whole_batch():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)) * 7 + 1000
    moments = RunningMoments()
    for part in x.split([1, 9, 40, 50]):
        moments.update(part)
    assert moments.mean == pytest.approx(x.mean().item(), rel=1e-6)
    assert moments.std == pytest.approx(x.double().std().item(), rel=1e-5)
