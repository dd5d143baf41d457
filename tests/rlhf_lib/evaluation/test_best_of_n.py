"""Best-of-n: the estimator by hand and against enumeration, the KL bound against exact KLs, and a tiny model."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from tiny_models import one_thread, tiny_gpt2, word_tokenizer  # noqa: F401

from rlhf_lib.errors import ModelError
from rlhf_lib.evaluation.best_of_n import BestOfN, expected_best, kl_bound, sample_best_of_n, size_at
from rlhf_lib.ppo.rollout import sample_responses
from rlhf_lib.recipe import GenerationConfig

GENERATION = GenerationConfig(max_new_tokens=5)


def test_the_best_of_n_by_hand():
    scores = np.array([[4.0, 1.0, 2.0]])
    # of the pairs (4, 1), (4, 2), (1, 2) the best are 4, 4, 2
    assert [expected_best(scores, n)[0] for n in (1, 2, 3)] == pytest.approx([7 / 3, 10 / 3, 4])


@pytest.mark.parametrize("n", range(1, 7))
def test_it_is_the_mean_over_all_subsets(n):
    rng = np.random.default_rng(n)
    scores_PN, values_PN = rng.integers(0, 4, (3, 6)).astype(float), rng.normal(size=(3, 6))  # with ties
    for scores, values, best, picked in zip(
        scores_PN, values_PN, expected_best(scores_PN, n), expected_best(scores_PN, n, values_PN), strict=True
    ):
        subsets = list(combinations(range(6), n))
        tops = [[i for i in subset if scores[i] == max(scores[list(subset)])] for subset in subsets]
        assert best == pytest.approx(np.mean([scores[top[0]] for top in tops]))
        assert picked == pytest.approx(np.mean([values[top].mean() for top in tops]))


def test_it_is_unbiased():
    """Over every draw of 4 answers from a distribution, the estimates' mean is the true best of 2 and 3."""
    chances = {0.0: 0.5, 1.0: 0.3, 5.0: 0.2}
    for n in (2, 3):
        true = sum(max(drawn) * math.prod(chances[x] for x in drawn) for drawn in product(chances, repeat=n))
        estimated = sum(
            expected_best(np.array([drawn]), n)[0] * math.prod(chances[x] for x in drawn)
            for drawn in product(chances, repeat=4)
        )
        assert estimated == pytest.approx(true)


def test_more_than_the_answers_there_are_is_refused():
    with pytest.raises(ValueError, match="best of 3 can't be told from 2 answers"):
        expected_best(np.zeros((1, 2)), 3)


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_bound_is_one_and_is_reached_by_many_unlikely_answers(n):
    """Of k equally likely answers of distinct scores the j-th lowest is the best of n with (j/k)^n - ((j-1)/k)^n."""
    for count in (2, 3, 10, 1000):
        cumulative = np.arange(count + 1) / count
        chances = np.diff(cumulative**n)
        exact = float((chances * np.log(chances * count))[chances > 0].sum())
        assert exact <= kl_bound(n) + 1e-12
    assert exact == pytest.approx(kl_bound(n), abs=2e-2)
    assert kl_bound(1) == 0
    assert kl_bound(4) == pytest.approx(0.636, abs=1e-3)
    assert size_at(kl_bound(n)) == pytest.approx(n)


def test_at_a_kl_between_two_n_it_is_their_mixture():
    best = BestOfN(["a", "b"], np.array([[0.0, 1.0, 2.0], [3.0, 3.0, 3.0]]))
    middle = 0.75 * kl_bound(2) + 0.25 * kl_bound(3)
    n, rewards = best.at_kl(middle)
    assert n == pytest.approx(2.25)
    assert rewards == pytest.approx([0.75 * 5 / 3 + 0.25 * 2, 3.0])  # of the pairs of 0, 1, 2 the best are 1, 2, 2
    assert best.at_kl(0) == (1.0, [1.0, 3.0])
    assert best.at_kl(99) == (3.0, [2.0, 3.0])
    assert BestOfN(["a"], np.array([[2.0]])).at_kl(1.0) == (1.0, [2.0])


def test_the_baselines_and_their_intervals_go_by_prompt():
    rng = np.random.default_rng(0)
    scores_PN = rng.normal(size=(100, 6))
    best = BestOfN([f"q{i}" for i in range(100)], scores_PN, {"negated": -scores_PN})
    assert best.sizes == [1, 2, 4, 6]
    four = best.baselines[2]
    assert four.name == "best_of_4"
    assert four.title == "best of 4"
    assert set(four.record) == {"reward", "ci95", "kl", "prompts", "judges", "judges_ci95", "lead", "judges_lead"}
    assert four.reward == pytest.approx(expected_best(scores_PN, 4).mean())
    error = expected_best(scores_PN, 4).std() / 10
    assert four.ci95 == pytest.approx((four.reward - 1.96 * error, four.reward + 1.96 * error), abs=0.03)
    assert four.record["judges"] == {"negated": pytest.approx(-four.reward)}
    low, high = four.judges_ci95["negated"]
    assert (-high, -low) == pytest.approx(four.ci95, abs=0.03)
    same = BestOfN(["q"] * 100, scores_PN)  # one prompt: no interval
    assert same.baseline(4).ci95 is None
    assert same.baseline(4).prompts == 1


def test_the_reference_answers_apart_from_all_other_samples():
    model, tokenizer = tiny_gpt2(0), word_tokenizer()
    queries = ["w1 w2", "w3 w4 w5"]
    ids = [tokenizer(query).input_ids for query in queries]
    scored = []

    def length(asked, answers):
        scored.append(list(zip(asked, answers, strict=True)))
        return [float(len(answer)) for answer in answers]

    def run(seed=3, **judges):
        return sample_best_of_n(
            model, tokenizer, length, queries, ids, GENERATION, samples=8, seed=seed, judges=judges
        )  # fmt: skip

    best = run(short=lambda asked, answers: [-float(len(answer)) for answer in answers])
    assert best.scores_PN.shape == (2, 8)
    assert (best.judged["short"] == -best.scores_PN).all()
    assert best.baselines[-1].reward > best.baselines[0].reward
    assert (run().scores_PN == best.scores_PN).all()
    assert (run(seed=4).scores_PN != best.scores_PN).any()
    assert len(set(scored[0])) == len(scored[0])  # equal answers are scored once
    evaluated = sample_responses(model, tokenizer, ids, GENERATION, seed=3).texts
    assert evaluated != [scored[0][0][1], next(answer for query, answer in scored[0] if query == queries[1])]
    with pytest.raises(ModelError, match=r"of the judge broken gave nan"):
        run(broken=lambda asked, answers: [math.nan] * len(answers))
