import numpy as np
import pytest
from scipy import stats

from rlhf_lib import statistics
from rlhf_lib.statistics import (
    LEAST_FOR_INTERVAL,
    bootstrap_mean,
    mean_interval,
    no_interval,
    paired_bootstrap,
    rank_correlation,
    share_interval,
    standard_error,
    wilson,
)


def test_interval_of_coin_throws_is_the_binomial_one():
    # Resampling 40 of 100 heads is Binomial(100, 0.4) exactly: its 2.5% and 97.5% points are 31 and 50.
    mean, low, high = bootstrap_mean([1.0] * 40 + [0.0] * 60, resamples=20_000)
    assert mean == 0.4
    assert low == pytest.approx(stats.binom.ppf(0.025, 100, 0.4) / 100, abs=0.0101)
    assert high == pytest.approx(stats.binom.ppf(0.975, 100, 0.4) / 100, abs=0.0101)


def test_interval_narrows_with_the_level_and_repeats_with_the_seed():
    values = np.random.default_rng(1).normal(size=200).tolist()
    wide, narrow = bootstrap_mean(values), bootstrap_mean(values, level=0.5)
    assert wide[1] < narrow[1] < wide[0] < narrow[2] < wide[2]
    # normal theory: mean +- 1.96 std / sqrt(n)
    assert wide[2] - wide[1] == pytest.approx(2 * 1.96 * np.std(values) / 200**0.5, rel=0.1)
    assert bootstrap_mean(values) == wide != bootstrap_mean(values, seed=1)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.normal(size=50).tolist(), resamples=500, seed=i)[1:] for i in range(300)]
    assert 0.90 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.98


def test_a_handful_has_no_interval():
    values = np.random.default_rng(1).normal(size=LEAST_FOR_INTERVAL).tolist()
    assert mean_interval(values) == bootstrap_mean(values)[1:]
    assert mean_interval(values[1:]) is None
    assert mean_interval([0.003]) is None
    assert share_interval(1.0, LEAST_FOR_INTERVAL - 1) is None
    assert no_interval(1) == "no 95% interval: 1 prompt is too few"
    assert no_interval(19, "pair") == "no 95% interval: 19 pairs are too few"


def test_a_share_of_all_is_not_certain():
    # scipy's own Wilson interval; the bootstrap of ones would be 1 to 1
    for right, count in ((40, 40), (0, 40), (57, 100)):
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert share_interval(right / count, count) == pytest.approx((expected.low, expected.high))
    assert share_interval(1.0, 40)[0] == pytest.approx(0.912, abs=0.001)
    assert wilson(1.0, 1)[0] == pytest.approx(0.207, abs=0.001)


def test_equal_values_have_no_spread():
    assert bootstrap_mean([2.5] * 7) == (2.5, 2.5, 2.5)


def test_chunked_resampling_draws_every_resample(monkeypatch):
    values = [0.0, 1.0, 5.0]
    whole = bootstrap_mean(values, resamples=1001)
    monkeypatch.setattr(statistics, "DRAWS_AT_ONCE", 30)
    assert bootstrap_mean(values, resamples=1001) == whole


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")], [[1.0], [2.0]]])
def test_values_without_a_mean_are_refused(values):
    with pytest.raises(ValueError, match="finite values"):
        bootstrap_mean(values)


def test_pairs_share_what_varies_between_prompts():
    prompts = np.random.default_rng(0).normal(scale=100, size=50)
    mean, low, high = paired_bootstrap(prompts.tolist(), (prompts + np.tile([1.0, 3.0], 25)).tolist())
    assert mean == pytest.approx(2.0)
    assert 1.6 < low < 2.0 < high < 2.4  # unpaired, the interval would be some 80 wide
    with pytest.raises(ValueError, match="2 and 1"):
        paired_bootstrap([1.0, 2.0], [1.0])


def test_rank_correlation_by_hand():
    # ranks 1 2 3 4 against 1 2 4 3: rho = 1 - 6 * 2 / (4 * 15) = 0.8
    assert rank_correlation([1, 2, 3, 400], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # a tie takes the mean rank: 1 2 3 against 1.5 1.5 3 -> Pearson of the ranks 1.5 / sqrt(2 * 1.5)
    assert rank_correlation([1, 2, 3], [5, 5, 7]) == pytest.approx(1.5 / 3**0.5)
    assert rank_correlation([1, 2, 3], [1, 1, 1]) is None


def test_clustered_values_are_drawn_together():
    # Two prompts, one answered three times with 0 and one once with 4: of a resample's two prompts, a quarter of the
    # time both are the first (mean 0), a quarter both the second (4), and else one of each (4 / 4 answers = 1).
    values, prompts = [0.0, 0.0, 0.0, 4.0], ["a", "a", "a", "b"]
    mean, low, high = bootstrap_mean(values, clusters=prompts)
    assert (mean, low, high) == (1.0, 0.0, 4.0)
    assert bootstrap_mean(values, clusters=prompts, level=0.4)[1:] == (1.0, 1.0)  # the middle 40% is inside the half


def test_repeating_every_row_narrows_no_interval():
    values = np.random.default_rng(0).normal(size=30).tolist()
    prompts = list(range(30))
    once, by_prompt = bootstrap_mean(values), bootstrap_mean(values, clusters=prompts)
    assert by_prompt == once  # each prompt on its own: nothing changes
    twice = bootstrap_mean(values * 2, clusters=prompts * 2)
    assert twice == pytest.approx(once)
    narrowed = bootstrap_mean(values * 2)  # what taking the copies for new prompts would say
    assert narrowed[2] - narrowed[1] == pytest.approx((once[2] - once[1]) / 2**0.5, rel=0.05)

    assert standard_error(values * 2, prompts * 2) == pytest.approx(standard_error(values))
    scores = [0.0] * 60, values * 2
    assert paired_bootstrap(*scores, clusters=prompts * 2) == pytest.approx(once)


def test_standard_error_by_hand():
    # deviations -1.5 -0.5 0.5 1.5: std sqrt(5 / 3), over sqrt(4)
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx((5 / 3) ** 0.5 / 2)
    # as two clusters their sums are -2 and 2: sqrt(2 / 1 * 8) / 4
    assert standard_error([1.0, 2.0, 3.0, 4.0], ["a", "a", "b", "b"]) == pytest.approx(1.0)
    assert np.isnan(standard_error([1.0, 2.0], ["a", "a"]))


def test_a_label_short_is_refused():
    with pytest.raises(ValueError, match="2 values have 1 cluster labels"):
        bootstrap_mean([1.0, 2.0], clusters=["a"])


def test_a_share_of_clustered_values_is_known_less_well():
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(100), 4)
    alike = np.repeat((rng.random(100) < 0.7).astype(float), 4)  # each prompt's four values are the same
    assert statistics.clustered_share_interval(alike, prompts.tolist()) == pytest.approx(
        statistics.wilson(alike.mean(), 100), abs=0.002
    )
    apart = statistics.clustered_share_interval(alike, list(range(400)))
    assert apart == pytest.approx(statistics.wilson(alike.mean(), 400))
    # all right says no more than the number of prompts; a handful of prompts don't tell how much they differ
    assert statistics.clustered_share_interval([1.0] * 400, prompts.tolist()) == statistics.wilson(1.0, 100)
    assert statistics.clustered_share_interval(alike, [0] * 400) == statistics.wilson(alike.mean(), 400)
