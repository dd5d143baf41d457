"""Names of runs: which ones Prefect makes up, and what ours say."""

import pytest
from prefect.utilities.names import generate_slug

from flows.orchestration.names import describe, made_up


def test_a_name_of_prefects_server_is_made_up():
    assert all(made_up(generate_slug(2)) for _ in range(2000))


@pytest.mark.parametrize("name", ["alpha-orion", "psi42-suzuki-nebula", "mu7-canis-majoris-f", "Handmade-Zebra Snake"])
def test_a_name_that_a_form_fills_in_is_made_up(name):
    assert made_up(name)


@pytest.mark.parametrize(
    "name", ["low-kl", "baseline", "beta 2", "kl-0.1", "Tuesday", "two seeds", "eta", "brave otter"]
)
def test_a_name_that_somebody_types_is_not(name):
    assert not made_up(name)


@pytest.mark.parametrize(
    ("recipe", "overrides", "name"),
    [
        ("embedded", [], "embedded"),
        ("mine/happy.yaml", [], "happy"),  # there is no such file: that is for the run to say
        ("embedded", ["ppo.steps=100", "ppo.kl_coef=0.1"], "embedded ppo.steps=100 kl_coef=0.1"),
        ("embedded", ["ppo.steps=9", "seed=3", "ppo.kl_coef=1"], "embedded ppo.steps=9 kl_coef=1 seed=3"),
        ("embedded", ["ppo.steps=9", "ppo.steps=10"], "embedded ppo.steps=10"),
        ("embedded", ["name=sad", 'reward.label="NEGATIVE"'], "sad reward.label=NEGATIVE"),
        (
            "embedded",
            ["data.prompts.dataset=/data/of/the/team/prompts.jsonl"],
            "embedded data.prompts.dataset=prompts.jsonl",
        ),
        (
            "embedded",
            ["policy.train.from_scratch={layers: 2, width: 96, heads: 4}"],
            "embedded policy.train.from_scratch={…}",
        ),
        ("embedded", ["policy.model=https://me:pass@hub/x"], "embedded policy.model=https://me:***@hub/x"),
    ],
)
def test_a_name_says_what_is_overridden(recipe, overrides, name):
    assert describe(recipe, overrides) == name


def test_a_long_name_says_how_much_it_leaves_out():
    name = describe("embedded", [f"ppo.setting_{i}={i}" for i in range(30)])
    assert name.startswith("embedded ppo.setting_0=0 setting_1=1 ")
    assert name.endswith(" +25 more")
    assert len(name) < 120
