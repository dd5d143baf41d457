"""Columns on their way to a reward function, through whatever it is a part of, and terms that don't apply."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_lib.errors import ModelError, RecipeError
from rlhf_lib.recipe import ChecksConfig, RewardConfig
from rlhf_lib.rewards import sampled_scores, term_scores
from rlhf_lib.rewards.build import WeightedSum, build_reward, check_reward, needed_columns, scale_parts
from rlhf_lib.rewards.checks import run_checks
from rlhf_lib.rewards.ensemble import Ensemble
from rlhf_lib.rewards.function import function_reward
from rlhf_lib.rewards.judging import ask
from rlhf_lib.rewards.normalization import Normalization, normalized

COLUMNS = {"solution": ["c", "x"], "completion_ids": [[1], [2, 3]]}


def exact(completions, solution, **kwargs):
    return [float(said == right) for said, right in zip(completions, solution, strict=True)]


def tokens(completions, completion_ids=None):
    return [0.0 if completion_ids is None else float(len(ids)) for ids in completion_ids or completions]


def if_short(queries, responses):
    return [float(len(response)) if len(response) < 3 else None for response in responses]


def never(completions, **kwargs):
    return [None for _ in completions]


def of_three(one, two, three):
    return []


def section(name: str, **more) -> dict:
    return {"kind": "function", "function": f"{__name__}:{name}", **more}


def test_columns_reach_a_function_through_what_it_is_a_part_of():
    reward = function_reward(f"{__name__}:exact")
    halved = normalized(reward, Normalization(0.0, 0.5))
    nested = WeightedSum([(1.0, WeightedSum([(3.0, halved)])), (10.0, function_reward(f"{__name__}:tokens"))])
    assert sampled_scores(nested, ["a", "b"], ["c", "d"], columns=COLUMNS) == [3 * 2.0 + 10, 20.0]
    ensemble = Ensemble([reward, tokens], "worst")
    assert sampled_scores(ensemble, ["a", "b"], ["c", "d"], [True, False], COLUMNS) == [1.0, 0.0]
    assert ask(exact, "judge", ["a", "b"], ["c", "d"], None, COLUMNS) == [1.0, 0.0]


def test_a_missing_column_is_told_with_those_that_are_there():
    reward = function_reward(f"{__name__}:exact")
    with pytest.raises(RecipeError, match=r"exact needs the column solution, and the prompts' other columns are none"):
        reward(["a"], ["b"])
    with pytest.raises(RecipeError, match=r"other columns are answer, level: add it to .* data\.prompts\.columns, or"):
        reward(["a"], ["b"], columns={"level": [1], "answer": ["2"]})
    terms = [{"reward": section("exact")}, {"reward": section("tokens")}, {"reward": section("if_short")}]
    summed = RewardConfig.model_validate({"kind": "sum", "terms": terms})
    assert needed_columns(summed) == {f"{__name__}:exact": ["solution"]}


def test_a_function_of_neither_form_is_refused():
    with pytest.raises(RecipeError, match=r"of_three can be called neither with \(queries, responses\)"):
        check_reward(RewardConfig.model_validate(section("of_three")))


def test_a_sum_adds_the_terms_that_apply():
    short, count = function_reward(f"{__name__}:if_short"), function_reward(f"{__name__}:tokens")
    assert term_scores(short, ["q", "q"], ["ab", "abc"]) == [2.0, None]
    reward = WeightedSum([(2.0, short), (1.0, count)])
    assert sampled_scores(reward, ["q", "q"], ["ab", "abc"], columns=COLUMNS) == [5.0, 2.0]
    with pytest.raises(ModelError, match=r"no term .* applies to row 1, the query 'r' with the response 'abc'"):
        sampled_scores(WeightedSum([(2.0, short), (1.0, never)]), ["q", "r"], ["ab", "abc"])


def test_alone_and_in_an_ensemble_a_reward_always_applies():
    short = function_reward(f"{__name__}:if_short")
    for reward in (short, Ensemble([short, tokens], "mean"), normalized(short, Normalization(0.0, 1.0))):
        with pytest.raises(ModelError, match=r"None for the query 'q' with the response 'abc'.*one of the terms of"):
            sampled_scores(reward, ["q", "q"], ["ab", "abc"])


def test_a_scaled_term_is_fitted_where_it_applies(tmp_path):
    terms = [{"weight": 3, "reward": section("if_short", normalize=True)}, {"reward": section("tokens")}]
    reward = RewardConfig.model_validate({"kind": "sum", "terms": terms})
    queries, responses = ["q"] * 4, ["", "ab", "abc", "abcd"]
    found = scale_parts(reward, tmp_path, queries, responses, [True] * 4)
    assert found == {"term_0": Normalization(1.0, 1.0)}  # of 0 and 2
    built = build_reward(reward, str(tmp_path))
    assert sampled_scores(built, queries, responses, columns={"completion_ids": [[1]] * 4}) == [-2.0, 4.0, 1.0, 1.0]
    with pytest.raises(ModelError, match="term_0 of the reward: it applies to none of 2 reference samples"):
        scale_parts(reward, tmp_path, ["q"] * 2, ["abc", "abcd"], [True] * 2)


def test_the_checks_give_each_text_its_own_row():
    texts = [(f"question {i}", f" the answer is number {i}") for i in range(80)]
    given = set()

    def right(prompts, completions, solution, level=None):
        given.update(zip(prompts, solution, strict=True))
        return [float(said.split()[-1:] == [wanted]) for said, wanted in zip(completions, solution, strict=True)]

    columns = {"solution": [str(i) if i % 2 else "other" for i in range(80)], "level": list(range(80))}
    report = run_checks(right, ChecksConfig(pairs=60), None, texts, calibrated=False, columns=columns)
    assert len(given) == 60
    assert all(columns["solution"][int(prompt.split()[1])] == solution for prompt, solution in given)
    share = np.mean(report.scores["response"])
    assert 0 < share < 1
    assert report.metrics["score_std"] == pytest.approx(math.sqrt(share * (1 - share)))
    assert report.metrics["batch_difference"] == 0
    assert report.metrics["degenerate_empty"] < 0.5
    assert "timeouts" not in report.metrics
