"""Symptoms in histories made by hand: each check at its threshold, and what is said about a whole run."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from rlhf_lib.ppo.diagnostics import ADVICE, CHECKS, Symptom, diagnose, symptoms_at
from rlhf_lib.recipe import GenerationConfig, PPOConfig
from rlhf_lib.recipe.learning import PolicyConfig

CONFIG, GENERATION = PPOConfig(learning_rate=1e-4, kl_coef=0.05, ppo_epochs=2), GenerationConfig()
HEALTHY = {
    "ppo/val/var_explained": 0.3,
    "ppo/returns/var": 1.0,
    "ppo/policy/entropy": 2.0,
    "ppo/policy/clipfrac": 0.1,
    "ppo/policy/approxkl": 0.005,
    "objective/kl": 1.0,
    "tokens/responses_len_mean": 20.0,
}


def history(name: str, *values: float) -> list[dict[str, float]]:
    """Healthy steps but for one statistic."""
    return [HEALTHY | {name: value} for value in values]


def found(steps, config=CONFIG, generation=GENERATION) -> dict[str, Symptom]:
    return {symptom.kind: symptom for symptom in diagnose(steps, config, generation)}


def test_a_healthy_run_has_no_symptoms():
    growing = [HEALTHY | {"objective/kl": 0.5 * step} for step in range(40)]  # as KL does
    assert diagnose(growing, CONFIG, GENERATION) == []
    assert diagnose([], CONFIG, GENERATION) == []


def test_a_run_of_other_statistics_has_none():
    assert diagnose([{"ppo/mean_scores": 1.0}] * 20, CONFIG, GENERATION) == []


@pytest.mark.parametrize(
    ("kind", "steps", "first", "count"),
    [
        # the median of ten steps: a single very bad one is no symptom, a single good one hides none
        ("critic", history("ppo/val/var_explained", -50.0, *[0.1] * 15), None, 0),
        ("critic", history("ppo/val/var_explained", *[0.0] * 9), None, 0),
        ("critic", history("ppo/val/var_explained", *[0.0] * 9, 0.9, *[0.0] * 2), 10, 3),
        ("critic", history("ppo/val/var_explained", *[0.2] * 10, *[-0.1] * 6), 16, 1),
        ("entropy", history("ppo/policy/entropy", *[2.0] * 5, *[0.5] * 9), None, 0),
        ("entropy", history("ppo/policy/entropy", *[2.0] * 5, *[0.49] * 6), 10, 2),
        ("clipping", history("ppo/policy/clipfrac", *[0.3] * 9), None, 0),
        ("clipping", history("ppo/policy/clipfrac", *[0.1] * 3, *[0.31] * 5), 8, 1),
        ("updates", history("ppo/policy/approxkl", 0.01, 0.1, 0.02), None, 0),
        ("updates", history("ppo/policy/approxkl", 0.01, 0.11, 0.02, 0.3), 2, 2),
        ("kl_spike", history("objective/kl", *[2.0] * 5, 4.1, 4.2), 6, 1),
        ("kl_spike", history("objective/kl", *[2.0] * 5, 4.0), None, 0),
        ("kl_spike", history("objective/kl", *[0.1] * 5, 2.0), None, 0),  # twenty times, and still little
        ("kl_spike", history("objective/kl", 0.0, 0.5, 1.5, 3.0, 5.0, 8.0, 11.0), None, 0),  # a fast start
        ("negative_kl", history("objective/kl", 0.0, -0.2, -0.2, 0.1, -0.2), None, 0),
        ("negative_kl", history("objective/kl", 0.0, *[-0.01] * 9), None, 0),  # sampling
        ("negative_kl", history("objective/kl", 0.0, *[-0.2] * 6, 0.1), 4, 4),
        ("length", history("tokens/responses_len_mean", *[20.0] * 5, *[30.0] * 9), None, 0),
        ("length", history("tokens/responses_len_mean", *[20.0] * 5, *[30.1] * 6), 10, 2),
        ("length", history("tokens/responses_len_mean", *[20.0] * 5, *[9.9] * 5), 10, 1),
    ],
)
def test_each_check_at_its_threshold(kind, steps, first, count):
    symptoms = found(steps)
    assert set(symptoms) <= {kind}
    assert ((s := symptoms.get(kind)) and s.first) == first
    assert (s.steps if s else 0) == count


def test_returns_that_are_all_the_same_say_nothing_of_the_critic():
    assert diagnose([HEALTHY | {"ppo/val/var_explained": -1e12, "ppo/returns/var": 0.0}] * 20, CONFIG, GENERATION) == []


def test_during_a_run_each_step_is_judged_as_afterwards():
    steps = history("ppo/policy/approxkl", 0.01, 0.5, 0.01, 0.2)
    told = [
        symptom.first
        for number in range(1, 5)
        for symptom in symptoms_at(number, steps[:5], steps[:number], CONFIG, GENERATION)
    ]
    assert told == [2, 4]


def test_it_says_when_what_and_which_setting():
    (symptom,) = diagnose(history("ppo/policy/approxkl", 0.01, 0.5, 0.01, 0.2), CONFIG, GENERATION)
    assert str(symptom) == (
        "2 of steps 2 to 4: one step's updates moved the policy by 0.5 nats per token (ppo/policy/approxkl). Lower "
        "ppo.learning_rate (now 0.0001) or ppo.ppo_epochs (now 2), or set ppo.target_kl"
    )
    once = found(history("objective/kl", *[2.0] * 5, 9.0))["kl_spike"]
    assert str(once).startswith("step 6: the KL to the reference jumped to 9 nats per response, from 2. Lower")
    shrunk = found(history("ppo/policy/entropy", *[2.0] * 5, *[0.1] * 6))["entropy"]
    assert str(shrunk).startswith("steps 9 to 11: entropy fell from 2 to 0.48 nats per token: ")


@pytest.mark.parametrize(
    ("config", "generation", "advice"),
    [
        ({}, {"top_k": 10}, "Sample in full: generation.top_k: 0"),
        ({}, {"top_p": 0.9}, "Sample in full: generation.top_k: 0"),
        ({}, {}, "ppo.old_logprobs: recompute"),
        ({"old_logprobs": "recompute"}, {}, "ppo.kl_estimator: k3"),
    ],
)
def test_the_advice_on_a_negative_kl_names_its_cause(config, generation, advice):
    steps = history("objective/kl", *[-0.2] * 3)
    symptom = found(steps, PPOConfig(**config), GenerationConfig(**generation))["negative_kl"]
    assert advice in symptom.advice


def test_the_advice_on_the_critic_is_its_learning_rate_or_lambda():
    steps = history("ppo/val/var_explained", *[-0.1] * 10)
    assert "Set ppo.value_learning_rate to 0.001, ten times" in found(steps)["critic"].advice
    faster = PPOConfig(value_learning_rate=2e-3)
    assert "Raise ppo.value_learning_rate (now 0.002)" in found(steps, faster)["critic"].advice
    assert "Else set ppo.lam to 1 (now 0.95)" in found(steps, faster)["critic"].advice
    assert "ppo.lam" not in found(steps, PPOConfig(lam=1))["critic"].advice


def test_every_setting_in_an_advice_exists():
    assert ADVICE.keys() == CHECKS.keys()
    known = {"ppo": PPOConfig, "generation": GenerationConfig, "policy": PolicyConfig}
    for advice in ADVICE.values():
        named = re.findall(r"\b(ppo|generation|policy)\.(\w+)", advice(CONFIG, GENERATION))
        assert named
        assert all(key in known[section].model_fields for section, key in named)


def test_it_needs_no_torch():
    code = "import sys, rlhf_lib.ppo.diagnostics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
