"""Likelihood rewards and weighted sums of several, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from tiny_models import one_thread, tiny_gpt2, word_tokenizer  # noqa: F401

from rlhf_lib.errors import ModelError, RecipeError
from rlhf_lib.recipe import RewardConfig
from rlhf_lib.rewards import sampled_scores
from rlhf_lib.rewards.build import WeightedSum, build_reward, check_reward, scale_parts
from rlhf_lib.rewards.likelihood import LikelihoodReward

LN2 = math.log(2)


def unigram():
    """A model that gives <eos>, w1, w2, w3 the probabilities 1/8, 1/2, 1/4, 1/8 whatever came before."""
    model = tiny_gpt2(vocabulary=4, tie_word_embeddings=False)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.eye(16)[0])  # every state is the first unit vector
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = torch.tensor([1 / 8, 1 / 2, 1 / 4, 1 / 8]).log()
    return model


# ---------------------------------------------------------------- likelihood

QUERIES, RESPONSES = ["w1", "w1 w3 ", "", "", "w3"], [" w2", "w2 w2", "w1", "", " w3 w3"]
BY_HAND = [-1.5 * LN2, -2.0 * LN2, -LN2, -2.0 * LN2, -3.0 * LN2]  # the fourth has no token: a guess among 4


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_likelihood_is_the_mean_log_probability_of_query_and_response(batch_size):
    reward = LikelihoodReward(unigram(), word_tokenizer(4), max_length=None, batch_size=batch_size)
    assert reward(QUERIES, RESPONSES) == pytest.approx(BY_HAND, abs=1e-5)
    assert reward([], []) == []


def test_a_long_text_loses_its_beginning():
    reward = LikelihoodReward(unigram(), word_tokenizer(4), max_length=3, batch_size=8)  # the start token is one
    assert reward(["w3 w3 w3 "], ["w1 w2"]) == pytest.approx([-1.5 * LN2], abs=1e-5)


def test_one_text_without_tokens_is_a_uniform_guess():
    reward = LikelihoodReward(unigram(), word_tokenizer(4), max_length=None, batch_size=8)
    assert reward([""], [""]) == pytest.approx([-math.log(4)])


def test_a_likelihood_reward_is_built_from_its_folder(tmp_path):
    unigram().save_pretrained(tmp_path)
    word_tokenizer(4).save_pretrained(tmp_path)
    section = RewardConfig(kind="likelihood", model=str(tmp_path), batch_size=2)
    check_reward(section)
    assert build_reward(section)(QUERIES, RESPONSES) == pytest.approx(BY_HAND, abs=1e-5)
    with pytest.raises(ModelError, match="absent"):
        check_reward(RewardConfig(kind="likelihood", model=str(tmp_path / "absent")))


# ---------------------------------------------------------------- sums


def words(queries: list[str], responses: list[str]) -> list[float]:
    return [float(len(response.split())) for response in responses]


def query_words(queries: list[str], responses: list[str]) -> list[float]:
    return [float(len(query.split())) for query in queries]


def test_a_sum_weighs_its_terms():
    total = WeightedSum([(2.0, words), (-0.5, query_words)])
    assert total(["a b", "", "c"], ["d e f", "g", ""]) == [2.0 * 3 - 0.5 * 2, 2.0 * 1, -0.5 * 1]
    assert total([], []) == []


def test_a_sum_tells_its_terms_which_responses_ended():
    class Ends:
        reads_ends = True

        def __call__(self, queries, responses, *, ended=None):
            return [float(whole) for whole in ended]

    nested = WeightedSum([(1.0, words), (2.0, WeightedSum([(5.0, Ends())]))])
    assert sampled_scores(nested, ["", ""], ["a", "b c"], [True, False]) == [1.0 + 10.0, 2.0]
    assert nested(["", ""], ["a", "b c"]) == [1.0 + 10.0, 2.0 + 10.0]  # texts that nobody sampled are whole


def test_a_sum_refuses_terms_that_disagree_on_how_many_there_are():
    with pytest.raises(ValueError, match="shorter"):
        WeightedSum([(1.0, words), (1.0, lambda queries, responses: [0.0])])(["a", "b"], ["c", "d"])


def test_sums_are_built_and_checked_from_the_recipe_however_deep(tmp_path):
    unigram().save_pretrained(tmp_path)
    word_tokenizer(4).save_pretrained(tmp_path)
    fluent = {"kind": "likelihood", "model": str(tmp_path)}
    long = {"kind": "function", "function": f"{__name__}:words"}
    inner = {"kind": "sum", "terms": [{"weight": 3.0, "reward": long}, {"reward": fluent}]}
    section = RewardConfig.model_validate(
        {"kind": "sum", "terms": [{"weight": 0.5, "reward": inner}, {"reward": long}]}
    )
    check_reward(section)
    lengths = [len(response.split()) for response in RESPONSES]
    expected = [0.5 * (3.0 * n + fluency) + n for n, fluency in zip(lengths, BY_HAND, strict=True)]
    assert build_reward(section)(QUERIES, RESPONSES) == pytest.approx(expected, abs=1e-5)

    long["function"] = f"{__name__}:absent"
    with pytest.raises(RecipeError, match="has no function absent"):
        check_reward(RewardConfig.model_validate({"kind": "sum", "terms": [{"reward": inner}]}))


def test_parts_of_a_run_lie_in_folders_of_their_own():
    own = {"kind": "preference", "normalize": True}
    existing = {"kind": "preference", "model": "trained/before"}
    inner = {"kind": "sum", "terms": [{"reward": existing}, {"reward": own}], "normalize": True}
    section = RewardConfig.model_validate({"kind": "sum", "terms": [{"reward": existing}, {"reward": inner}]})
    assert {path: part.model for path, part in section.learned().items()} == {"term_1/term_1": None}
    assert list(section.scaled()) == ["term_1/term_1", "term_1"]  # a sum is measured after what it adds up
    alone = RewardConfig(kind="preference", model="gpt2")  # there the model is where training starts
    assert alone.learned() == {"": alone}
    assert not RewardConfig.model_validate({"kind": "sum", "terms": [{"reward": existing}]}).has_folder


def test_a_term_is_scaled_on_samples_before_it_is_weighed(tmp_path):
    long = {"kind": "function", "function": f"{__name__}:words"}
    inner = {"kind": "sum", "normalize": True, "terms": [{"weight": 10, "reward": long | {"normalize": True}}]}
    section = RewardConfig.model_validate(
        {"kind": "sum", "terms": [{"weight": 3.0, "reward": inner}, {"weight": 0.5, "reward": long}]}
    )
    with pytest.raises(ModelError, match="aren't trained or scaled yet"):
        build_reward(section)
    found = scale_parts(section, tmp_path, ["", ""], ["a", "a b c"], [True, True])  # 1 and 3 words
    assert {path: (scale.mean, scale.std) for path, scale in found.items()} == {
        "term_0/term_0": (2.0, 1.0),
        "term_0": (0.0, 10.0),
    }
    assert build_reward(section, str(tmp_path))(["", ""], ["a b", "a b c d"]) == [0.5 * 2, 3.0 * 2 + 0.5 * 4]

    (tmp_path / "term_0/normalization.json").unlink()
    with pytest.raises(ModelError, match=r"term_0/normalization\.json can't be read .* run the reward's recipe again"):
        build_reward(section, str(tmp_path))
    with pytest.raises(ModelError, match="term_0/term_0 of the reward: the reward can't be normalized"):
        scale_parts(section, tmp_path, ["", ""], ["a", "b"], [True, True])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "sum"}, "kind sum needs terms"),
        ({"kind": "sum", "terms": []}, "kind sum needs terms"),
        ({"kind": "sum", "terms": [{"reward": {"kind": "preference"}}] * 2}, "trains one preference term at most"),
        ({"kind": "function", "function": "a:b", "terms": [{"reward": {"kind": "preference"}}]}, "no other kind"),
        ({"kind": "likelihood"}, "kind likelihood needs model"),
    ],
)
def test_a_section_that_cannot_be_built_is_refused(section, message):
    with pytest.raises(ValidationError, match=message):
        RewardConfig.model_validate(section)
