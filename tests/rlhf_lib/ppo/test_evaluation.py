"""Evaluation prompts while PPO learns, metrics of one's own on them, and the best step's weights."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from tiny_models import one_thread, remainder_reward, same, tiny_gpt2, tiny_prompts, tiny_trainer, weights  # noqa: F401

from rlhf_lib.errors import ModelError, RecipeError, RewardFailed, RLHFError
from rlhf_lib.ppo.checkpoint import load_best, save_best
from rlhf_lib.ppo.evaluation import import_metrics, metric_mean, metric_values
from rlhf_lib.ppo.rollout import sample_responses
from rlhf_lib.ppo.trainer import EVAL_STREAM
from rlhf_lib.recipe import LoraConfig

LORA = LoraConfig(r=4, alpha=8)


def test_evaluation_prompts_are_scored_every_so_many_steps_with_the_same_random_numbers():
    prompts = tiny_prompts(20)[12:]
    trainer = tiny_trainer(eval_prompts=prompts, eval_every=2, steps=4, learning_rate=0.0)
    stats = list(trainer.train())
    assert ["eval/mean_scores" in s for s in stats] == [False, True, False, True]
    assert stats[1]["eval/mean_scores"] == stats[3]["eval/mean_scores"]  # the policy stayed, so they must
    sampled = sample_responses(
        trainer.policy.model,
        trainer.tokenizer,
        [row["input_ids"] for row in prompts],
        trainer.generation,
        seed=0,
        step=2**31 - 1,
    )
    scores = remainder_reward([], sampled.texts)
    assert stats[3]["eval/mean_scores"] == pytest.approx(sum(scores) / 8, rel=1e-5)
    assert stats[3]["eval/std_scores"] == pytest.approx(float(torch.tensor(scores).std()), rel=1e-5)
    assert stats[3]["eval/responses_len_mean"] == sum(map(len, sampled.response_ids)) / 8


def test_evaluation_changes_nothing_in_the_run():
    plain, watched = tiny_trainer(), tiny_trainer(eval_prompts=tiny_prompts(4), eval_every=1)
    for expected, stats in zip(plain.train(), watched.train(), strict=True):
        assert {n: v for n, v in stats.items() if not n.startswith(("time/", "eval/"))} == {
            n: v for n, v in expected.items() if not n.startswith("time/")
        }
    assert same(weights(plain.policy), weights(watched.policy))


def test_an_evaluation_holds_the_texts_with_their_scores():
    trainer = tiny_trainer(eval_prompts=tiny_prompts(3))
    found = trainer.evaluate()
    assert [row["query"] for row in found.samples] == [row["query"] for row in tiny_prompts(3)]
    assert [row["score"] for row in found.samples] == pytest.approx(
        remainder_reward([], [row["response"] for row in found.samples])
    )
    assert found.stats["eval/mean_scores"] == pytest.approx(sum(row["score"] for row in found.samples) / 3)
    with pytest.raises(FrozenInstanceError):
        found.samples = []
    assert trainer.evaluate() == found
    assert len(trainer.evaluate(["w1 w2"]).samples) == 1
    with pytest.raises(RLHFError, match="there are no evaluation prompts: give eval_prompts to PPOTrainer"):
        tiny_trainer().evaluate()


# ---------------------------------------------------------------- judges and the KL


def count_words(queries: list[str], responses: list[str]) -> list[float]:
    return [float(len(response.split())) for response in responses]


@pytest.mark.parametrize("policy", [{}, {"unfrozen_layers": 1}], ids=["full", "shared bottom"])
def test_judges_and_the_kl_are_of_the_same_responses_as_the_reward(policy):
    trainer = tiny_trainer(
        eval_prompts=tiny_prompts(5), eval_every=1, judges={"words": count_words}, policy=policy, micro_batch_tokens=16
    )
    assert trainer.evaluate().stats["eval/kl"] == pytest.approx(0, abs=1e-6)
    reference = tiny_gpt2()
    *_, stats = trainer.train()
    found = trainer.evaluate()
    words = [len(row["response"].split()) for row in found.samples]
    assert [row["judge/words"] for row in found.samples] == words
    assert stats["eval/judge/words"] == found.stats["eval/judge/words"] == pytest.approx(sum(words) / 5)
    sampled = trainer._sample(trainer.eval_prompts, EVAL_STREAM)
    ratios = []
    with torch.no_grad():
        for prompt, response in zip(sampled.prompt_ids, sampled.response_ids, strict=True):
            ids = torch.tensor([prompt + response])
            both = [model(ids).logits[0, :-1].log_softmax(-1) for model in (trainer.policy.model, reference)]
            tokens = range(len(prompt) - 1, len(prompt) + len(response) - 1)
            ratios.append(sum(float(both[0][t, ids[0, t + 1]] - both[1][t, ids[0, t + 1]]) for t in tokens))
    assert stats["eval/kl"] == pytest.approx(sum(ratios) / 5, abs=1e-4)
    assert abs(stats["eval/kl"]) > 1e-2


def test_judges_change_nothing_in_the_run():
    plain = tiny_trainer(old_logprobs="auto")
    asked = tiny_trainer(eval_prompts=tiny_prompts(4), eval_every=1, judges={"words": count_words}, old_logprobs="auto")
    asked.evaluate()  # before the first step decides whether log-probs are reused
    assert [s["objective/kl"] for s in plain.train()] == [s["objective/kl"] for s in asked.train()]
    assert same(weights(plain.policy), weights(asked.policy))


def test_a_judge_that_gives_no_number_is_named():
    trainer = tiny_trainer(eval_prompts=tiny_prompts(2), judges={"odd": lambda queries, responses: [math.nan] * 2})
    with pytest.raises(ModelError, match=r"^evaluation\.judges\.odd: the reward of judge odd gave nan for the query"):
        trainer.evaluate()


# ---------------------------------------------------------------- metrics


def metric_fn(samples, prompts, outputs, **kwargs):
    """As in a program written for trlX."""
    assert samples == [prompt + output for prompt, output in zip(prompts, outputs, strict=True)]
    return {"words": [len(output.split()) for output in outputs], "share": 0.25, "stars": torch.tensor(kwargs["stars"])}


def test_a_metric_function_of_trlx_works_unchanged():
    prompts = [row | {"stars": float(i)} for i, row in enumerate(tiny_prompts(4))]
    trainer = tiny_trainer(eval_prompts=prompts, metrics=metric_fn, eval_every=1, steps=1)
    (stats,) = trainer.train()
    found = trainer.evaluate()
    words = [len(row["response"].split()) for row in found.samples]
    assert [row["words"] for row in found.samples] == words
    assert [row["stars"] for row in found.samples] == [0.0, 1.0, 2.0, 3.0]
    assert found.stats["eval/words"] == pytest.approx(sum(words) / 4)
    assert (stats["eval/share"], stats["eval/stars"]) == (0.25, 1.5)
    assert "share" not in found.samples[0]  # of all the samples together


def test_a_metric_gets_the_arguments_that_it_names():
    seen = []
    metrics = [
        lambda samples: {"a": [float(len(samples))] * 2},
        lambda outputs, tokenizer: seen.append(tokenizer) or {"b": len(outputs)},
    ]
    assert metric_values(metrics, ["x", "y"], ["1", "2"], tokenizer="t") == {"a": [2.0, 2.0], "b": 2.0}
    assert seen == ["t"]


def test_a_metric_that_does_not_apply_is_left_out():
    values = metric_values(
        [lambda outputs: {"some": [1.0, None, math.nan, 4.0], "none": [None] * 4, "nan": math.nan}],
        list("abcd"),
        list("abcd"),
    )
    assert values == {"some": [1.0, None, None, 4.0], "none": [None] * 4, "nan": None}
    assert [metric_mean(given) for given in values.values()] == [2.5, None, None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0, 2.0], r"the metric odd gave \[1.0, 2.0\]: it must return a dict, name -> values over the samples"),
        (
            {"length": [1.0]},
            "the metric odd gave for 'length' 1 values for 2 samples: give one each, or a single number",
        ),
        ({"length": ["1", "2"]}, "the metric odd gave for 'length' '1', which is no number"),
        ({"score": [1.0, 2.0]}, "a metric is called 'score', which is a name of the trainer's own"),
        ({"mean_scores": 1.0}, "a metric is called 'mean_scores'"),
    ],
    ids=str,
)
def test_metrics_that_cannot_be_used_are_named(given, message):
    def odd(samples):
        return given

    with pytest.raises(ModelError, match=message):
        tiny_trainer(eval_prompts=tiny_prompts(2), metrics=odd).evaluate()


def test_two_metrics_of_one_name_are_refused():
    twice = [lambda samples: {"a": 1.0}] * 2
    with pytest.raises(ModelError, match="gives 'a', as another metric does"):
        metric_values(twice, ["x"], ["y"])


def test_a_recipe_s_metric_is_named_when_it_raises(tmp_path, monkeypatch):
    (tmp_path / "own_metrics.py").write_text("def broken(samples):\n    return {'a': samples[7]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    (broken,) = import_metrics(["own_metrics:broken"])
    message = (
        r"evaluation\.metrics own_metrics:broken raised IndexError: list index out of range\n.*own_metrics.py.*line 2"
    )
    with pytest.raises(RewardFailed, match=message):
        metric_values([broken], ["x"], ["y"])
    with pytest.raises(RecipeError, match=r"evaluation\.metrics own_metrics:brocken: own_metrics has no function"):
        import_metrics(["own_metrics:brocken"])


# ---------------------------------------------------------------- the best step


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_best_weights_are_kept_and_put_back(tmp_path, lora):
    trainer = tiny_trainer(lora=lora)
    assert not load_best(trainer, tmp_path)
    trainer.train_step()
    save_best(trainer, tmp_path)
    trainer.train_step()
    save_best(trainer, tmp_path)  # replaces the one before
    best = weights(trainer.policy)
    trainer.train_step()
    assert not same(weights(trainer.policy), best)
    assert load_best(trainer, tmp_path)
    assert same(weights(trainer.policy), best)
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]
