"""The first steps, in which the value function learns alone; and PPO with the reward model as critic, start to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny_models import (
    one_thread,  # noqa: F401
    same,
    tiny_gpt2,
    tiny_llama,
    tiny_prompts,
    tiny_trainer,
    weights,
    word_tokenizer,
)
from transformers import AutoModelForCausalLM

from rlhf_lib.errors import RecipeError
from rlhf_lib.models.critic import critic_from_classifier
from rlhf_lib.models.loading import distinct_pad, load_classifier
from rlhf_lib.plan.requirements import check_accelerate
from rlhf_lib.ppo.checkpoint import resume, save_checkpoint
from rlhf_lib.ppo.run import Job, train
from rlhf_lib.recipe import LoraConfig, PPOConfig, Recipe

IDS = torch.tensor([[5, 9, 2, 0, 7]])


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (tiny_gpt2, {}),
        (tiny_llama, {"policy": {"critic": True}}),
        (tiny_gpt2, {"lora": LoraConfig(r=4, alpha=8)}),
        (tiny_gpt2, {"policy": {"unfrozen_layers": 1}, "kl_in": "loss", "kl_estimator": "k2"}),
    ],
    ids=["shared", "separate", "lora", "top block"],
)
def test_in_its_warm_up_the_value_function_alone_learns(build, options):
    trainer = tiny_trainer(
        build(), steps=5, critic_warmup=3, old_logprobs="recompute", value_learning_rate=3e-2, kl_horizon=8, **options
    )
    policy = trainer.policy
    values = {id(p) for p in policy.of_values()}
    others = {name: p for name, p in policy.named_parameters() if p.requires_grad and id(p) not in values}
    start = weights(policy)
    with torch.no_grad():
        logits = policy.model(IDS).logits
    told = []
    for _ in range(3):
        told.append(trainer.train_step())
        with torch.no_grad():
            assert torch.equal(policy.model(IDS).logits, logits)
        assert not any(p in trainer.optimizer.state for p in others.values())
    assert others
    assert all(torch.equal(p, start[name]) for name, p in others.items())
    assert [stats["objective/kl"] for stats in told] == [0.0] * 3
    assert [stats["objective/kl_coef"] for stats in told] == [0.2] * 3  # adaptive, and not led astray by a KL of 0
    assert [stats["ppo/policy/ratio"] for stats in told] == [1.0] * 3
    assert not torch.equal(policy.v_head.summary.weight, start["v_head.summary.weight"])
    assert trainer.train_step()["objective/kl_coef"] == 0.2
    assert all(p in trainer.optimizer.state for p in others.values())
    assert not any(torch.equal(p, start[name]) for name, p in others.items() if ".lora_A." not in name)
    assert trainer.train_step()["objective/kl_coef"] != 0.2


def test_the_value_loss_falls_on_the_same_responses():
    trainer = tiny_trainer(steps=9, critic_warmup=8, value_learning_rate=1e-3, lam=1.0)  # whose returns don't move
    sampled = trainer._sample(trainer._next_rows(), 0)
    scores = trainer._score(trainer._next_rows(), sampled)
    losses = []
    for _ in range(6):
        sampled.values = []  # of the value function as it is by now
        losses.append(trainer.learn(sampled, scores)["ppo/loss/value"])
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_the_policys_schedule_begins_after_the_warm_up():
    trainer = tiny_trainer(steps=6, critic_warmup=2, learning_rate=1e-2, warmup_steps=1, schedule="linear")
    # 2 steps at the full rate, then those of a run of 4 steps: half of it, and linear from there
    assert [stats["ppo/learning_rate"] for stats in trainer.train()] == pytest.approx(
        [1e-2, 1e-2, 5e-3, 1e-2, 1e-2 * 2 / 3, 1e-2 / 3]
    )


def test_a_run_resumed_in_or_after_the_warm_up_equals_an_uninterrupted_one(tmp_path):
    def build():
        torch.manual_seed(1)
        scorer = load_classifier(str(tmp_path / "model"), num_labels=1)
        critic = critic_from_classifier(scorer, mean=0.5, std=2.0)
        return tiny_trainer(steps=5, critic_warmup=2, kl_horizon=40, schedule="cosine", policy={"critic": critic})

    def run(trainer, steps):
        return [{n: v for n, v in trainer.train_step().items() if not n.startswith("time/")} for _ in range(steps)]

    tiny_gpt2().save_pretrained(tmp_path / "model")
    whole = build()
    start = weights(whole.policy.critic)
    expected = run(whole, 5)
    assert not same(weights(whole.policy.critic), start)
    for done in (1, 3):
        begun = build()
        history = run(begun, done)
        save_checkpoint(begun, tmp_path / str(done), key="k", history=history)
        resumed = build()
        assert resume(resumed, tmp_path / str(done), key="k") == history == expected[:done]
        assert run(resumed, 5 - done) == expected[done:]
        assert same(weights(resumed.policy), weights(whole.policy))


@pytest.fixture
def job(tmp_path):
    """Makes jobs on a GPT-2 with a reward model made of it, whose score head is random, as critic too."""
    start, scorer = tmp_path / "model", tmp_path / "reward"
    tokenizer = word_tokenizer()
    tiny_gpt2().save_pretrained(start)
    tokenizer.save_pretrained(start)
    torch.manual_seed(1)
    network = load_classifier(str(start), num_labels=1)
    distinct_pad(tokenizer, network)
    network.save_pretrained(scorer)
    tokenizer.save_pretrained(scorer)
    for split in ("train", "test"):
        Dataset.from_list(tiny_prompts()).save_to_disk(tmp_path / split)

    def made(name: str, processes: int = 1, **policy) -> Job:
        recipe = {
            "name": name,
            "data": {"prompts": {"dataset": "none"}},
            "policy": {"model": str(start), "critic": "reward"} | policy,
            "reward": {"kind": "classifier", "model": str(scorer)},
            "generation": {"max_new_tokens": 7},
            # eps: Adam turns rounding of a gradient near 0 into a step otherwise
            "ppo": {
                "steps": 3,
                "batch_size": 8,
                "critic_warmup": 1,
                "ppo_epochs": 2,
                "learning_rate": 1e-2,
                "eps": 1e-4,
            },
            "compute": {"device": "cpu", "precision": "fp32", "processes": processes},
        }
        return Job(
            recipe=Recipe.model_validate(recipe),
            policy=str(start),
            prompts={split: str(tmp_path / split) for split in ("train", "test")},
            reward=None,
            score_constants=(0.1, 0.5),
            folder=str(tmp_path / name),
            checkpoints=str(tmp_path / name / "checkpoints"),
            key="k",
        )

    return made


def learnt(job: Job) -> dict[str, torch.Tensor]:
    return weights(AutoModelForCausalLM.from_pretrained(Path(job.folder) / "policy"))


def test_the_reward_model_as_critic_from_job_to_export(job):
    alone, two = job("alone"), job("two", 2)
    told = [event.stats for event in train(alone)]
    assert told[0]["ppo/val/mean"] != 0.0  # a head that starts at 0 would say 0
    start, end = weights(tiny_gpt2()), learnt(alone)
    assert start.keys() == end.keys()  # the critic isn't exported
    assert not same(start, end)

    Path(two.folder).mkdir()
    shared = [event.stats for event in train(two)]
    for ours, expected in zip(shared, told, strict=True):
        for name in ("ppo/loss/value", "ppo/val/mean", "ppo/mean_scores", "objective/kl", "ppo/grad_norm"):
            assert ours[name] == pytest.approx(expected[name], rel=2e-4, abs=2e-5), name
    for name, expected in learnt(two).items():
        torch.testing.assert_close(expected, end[name], rtol=0, atol=2e-4)


def test_settings_that_leave_nothing_to_learn_are_refused():
    with pytest.raises(ValueError, match=r"critic_warmup \(3\) leaves the policy none of the 3 steps"):
        PPOConfig(steps=3, critic_warmup=3)
    with pytest.raises(ValueError, match="critic_warmup trains the value function, which vf_coef 0 switches off"):
        PPOConfig(critic_warmup=1, vf_coef=0.0)


def test_deepspeed_is_refused_by_its_configuration(job):
    recipe = job("x").recipe
    folder = Path(__file__).parents[3] / "docs" / "accelerate"
    for name in ("fsdp2", "two-nodes"):
        recipe.compute.accelerate = str(folder / f"{name}.yaml")
        check_accelerate(recipe)
    recipe.compute.accelerate = str(folder / "deepspeed-zero2.yaml")
    with pytest.raises(RecipeError, match=r"ppo\.critic_warmup can't be had under DeepSpeed.*set it to 0"):
        check_accelerate(recipe)
    recipe.ppo.critic_warmup = 0
    check_accelerate(recipe)
