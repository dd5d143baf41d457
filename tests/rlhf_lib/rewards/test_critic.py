"""The reward model as critic: its values are PPO's scores, and what can't be one is refused before any training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import one_thread, tiny_gpt2, tiny_llama, tiny_t5, word_tokenizer  # noqa: F401
from transformers import PreTrainedTokenizerFast

from rlhf_lib.errors import ModelError
from rlhf_lib.models.loading import distinct_pad, load_classifier, load_policy
from rlhf_lib.models.logprobs import arrange
from rlhf_lib.models.policy import Policy
from rlhf_lib.recipe import Recipe
from rlhf_lib.rewards.build import build_reward
from rlhf_lib.rewards.critic import check_critic, load_critic


def words(vocabulary: int = 61) -> PreTrainedTokenizerFast:
    """With a word "a": by it, scoring tells whether a tokenizer ends texts itself, and unknown words here are EOS."""
    tokenizer = word_tokenizer(vocabulary)
    tokenizer.add_tokens(["a"])
    return tokenizer


def saved(folder: Path, model, vocabulary: int = 61) -> str:
    model.save_pretrained(folder)
    words(vocabulary).save_pretrained(folder)
    return str(folder)


def reward_model(start: str, folder: Path, labels: int = 1) -> str:
    """As it is trained here: a head on the policy's model, and a pad token more; the head is random."""
    torch.manual_seed(1)
    tokenizer = words()
    network = load_classifier(start, num_labels=labels)
    distinct_pad(tokenizer, network)
    torch.nn.init.normal_(network.score.weight)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def recipe(policy: dict, reward: dict) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "data": {"prompts": {"dataset": "x"}, "preferences": {}},
            "policy": {"critic": "reward"} | policy,
            "reward": reward,
        }
    )


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama], ids=["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["preference", "classifier"])
def test_the_value_at_the_last_token_is_the_normalised_score(tmp_path, build, kind):
    start = saved(tmp_path / "policy", build(vocabulary=62))
    trained = reward_model(start, tmp_path / "reward", labels=1 if kind == "preference" else 3)
    section = {"kind": kind} | ({} if kind == "preference" else {"model": trained, "label": "LABEL_2"})
    described = recipe({"model": start}, section)
    queries, responses = ["w5 w9", "w3 w0"], [" w4 w8 w1", " w7"]
    scores = build_reward(described.reward, trained)(queries, responses)
    critic = load_critic(described, trained, start, (0.75, 3.0))
    policy = Policy(load_policy(start), critic=critic)
    ids = words()
    end = [0] if kind == "preference" else []  # whose reward reads an EOS
    answers = [ids(response).input_ids + end + [1] for response in responses]  # a value is that of the state before
    batch = arrange(policy.model, [ids(query).input_ids for query in queries], answers)
    with torch.no_grad():
        _, values, _ = policy(batch, 1.0)
    last = [value[-1].item() for value in values.split([len(answer) for answer in answers])]
    assert last == pytest.approx([(score - 0.75) / 3.0 for score in scores], abs=1e-5)
    assert last[0] != pytest.approx(last[1], abs=1e-2)


def test_models_that_do_not_fit_are_refused_by_their_configurations(tmp_path):
    start = saved(tmp_path / "policy", tiny_gpt2(vocabulary=62))
    check_critic(recipe({"model": start}, {"kind": "preference"}))
    check_critic(recipe({"model": start}, {"kind": "preference", "model": reward_model(start, tmp_path / "reward")}))
    llama = saved(tmp_path / "llama", tiny_llama())
    with pytest.raises(ModelError, match="that is llama, and the policy gpt2"):
        check_critic(recipe({"model": start}, {"kind": "preference", "model": llama}))
    wider = saved(tmp_path / "wider", tiny_gpt2(vocabulary=81), 80)
    with pytest.raises(ModelError, match=r"with the policy's tokenizer.*critic to separate"):
        check_critic(recipe({"model": wider}, {"kind": "preference", "model": start}))
    with pytest.raises(ModelError, match="this one is seq2seq"):
        check_critic(recipe({"model": saved(tmp_path / "t5", tiny_t5(vocabulary=62))}, {"kind": "preference"}))


@pytest.mark.parametrize(
    ("policy", "reward", "message"),
    [
        ({"model": "m"}, {"kind": "function", "function": "a:b"}, "starts from a reward model.* this is function"),
        ({"model": "m"}, {"kind": "pair", "model": "r"}, "this is pair: set policy.critic to separate"),
        (
            {"model": "m"},
            {"kind": "sum", "terms": [{"reward": {"kind": "preference", "model": "r"}}]},
            "this is sum: set policy.critic to separate",
        ),
        ({"model": "m"}, {"kind": "classifier", "model": "r", "output": "softmax"}, "set reward.output to logit"),
        ({"train": {"from_scratch": {}}}, {"kind": "preference", "model": "r"}, "set reward.model to null"),
    ],
    ids=["function", "pair", "sum", "softmax", "new tokenizer"],
)
def test_a_recipe_says_so_itself_where_it_can(policy, reward, message):
    with pytest.raises(ValueError, match=message):
        recipe(policy, reward)
    recipe(policy | {"critic": "separate"}, reward)
