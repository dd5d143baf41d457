"""The checks on real small reward models: a trained one passes, and each broken one is stopped by the check for it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kitchen import PROMPT, RIGHT, WRONG, preferences, train_reward
from tiny_models import one_thread  # noqa: F401
from transformers import GPT2Config, GPT2ForSequenceClassification, set_seed

from rlhf_lib.errors import GateFailed, ModelError
from rlhf_lib.recipe import ChecksConfig, ProbeConfig, Recipe
from rlhf_lib.recipe import RewardConfig as RewardSettings
from rlhf_lib.rewards import Reward
from rlhf_lib.rewards.check_report import figures, markdown
from rlhf_lib.rewards.checks import Check, CheckReport, run_checks


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train_reward(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def reward(trained) -> Reward:
    from rlhf_lib.rewards.build import build_reward

    return build_reward(RewardSettings(kind="preference"), str(trained))


CHECKS = ChecksConfig(
    pairs=300,
    min_accuracy=0.8,
    probes=[
        ProbeConfig(query=PROMPT, better=RIGHT, worse=WRONG),
        ProbeConfig(query=PROMPT, better=" peel boil", worse=" boil peel"),
    ],
)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str, str]]:
    return preferences(400, seed=2)


@pytest.fixture(scope="module")
def good(reward, pairs) -> CheckReport:
    return run_checks(reward, CHECKS, pairs, None, calibrated=True)


def _failed(reward: Reward, pairs, checks: ChecksConfig = CHECKS, *, calibrated: bool = True) -> list[str]:
    report = run_checks(reward, checks, pairs, None, calibrated=calibrated)
    with pytest.raises(GateFailed) as error:
        report.raise_if_failed()
    said = str(error.value)
    assert all(f"{check.name}: {check.what} is {check.figure:.4g} and must be" in said for check in report.failed)
    assert all(check.key in said for check in report.failed if check.name != "finite_scores")
    return [check.name for check in report.failed]


def test_a_good_reward_model_passes(good):
    good.raise_if_failed()
    assert [check.name for check in good.checks] == [
        "finite_scores", "pairs", "accuracy", "gain_over_length", "calibration", "length_bias", "stock_phrase",
        "probes", "score_spread", "degenerate", "batch_agreement",
    ]  # fmt: skip
    assert good.metrics["accuracy"] > 0.9
    assert good.metrics["accuracy_low"] < good.metrics["accuracy"] < good.metrics["accuracy_high"]
    assert good.metrics["chosen_longer"] > 0.6  # the data's own leaning, which isn't the model's fault


def test_a_random_reward_is_stopped_by_accuracy(pairs):
    rng = np.random.default_rng(0)
    memory: dict[str, float] = {}  # one score a text, as a network with random weights would give

    def random(queries, responses):
        return [memory.setdefault(q + r, rng.normal()) for q, r in zip(queries, responses, strict=True)]

    assert "accuracy" in _failed(random, pairs)
    assert 0.4 < run_checks(random, CHECKS, pairs, None, calibrated=True).metrics["accuracy"] < 0.6


def test_an_untrained_model_is_stopped_by_accuracy(trained, pairs, tmp_path):
    from transformers import AutoTokenizer

    from rlhf_lib.rewards.build import build_reward

    set_seed(0)
    config = GPT2Config.from_pretrained(trained)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(trained).save_pretrained(tmp_path)
    untrained = build_reward(RewardSettings(kind="preference"), str(tmp_path))
    assert "accuracy" in _failed(untrained, [pair for pair in pairs if len(pair[2].split()) == len(pair[1].split())])


def test_a_sign_flipped_model_is_stopped_by_accuracy_and_probes(reward, pairs, good):
    failed = _failed(lambda q, r: [-score for score in reward(q, r)], pairs)
    assert {"accuracy", "probes", "calibration", "degenerate"} <= set(failed)
    flipped = run_checks(lambda q, r: [-score for score in reward(q, r)], CHECKS, pairs, None, calibrated=True)
    assert flipped.metrics["accuracy"] == pytest.approx(1 - good.metrics["accuracy"])
    assert flipped.metrics["probe_accuracy"] == 0


@pytest.mark.parametrize("scale", [lambda n: 0.02 * n, lambda n: math.log1p(n)])
def test_a_length_only_reward_is_stopped_by_length_bias_and_by_gaining_nothing_over_length(
    scale: Callable[[float], float],
):
    # Longer answers are preferred nine times out of ten here, so accuracy lets the rule pass.
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(300):
        short, long = (" word" * int(n) for n in np.sort(rng.choice(np.arange(5, 60), 2, replace=False)))
        pairs.append(("q", long, short) if rng.random() < 0.9 else ("q", short, long))
    checks = CHECKS.model_copy(update={"probes": []})
    failed = _failed(lambda q, r: [scale(len(text)) for text in r], pairs, checks, calibrated=False)
    assert failed == ["gain_over_length", "length_bias", "degenerate"]  # the last of over-long answers


def test_a_constant_reward_is_stopped_by_score_spread(pairs):
    assert {"score_spread", "accuracy", "probes"} <= set(_failed(lambda q, r: [0.5] * len(r), pairs))
    texts = [(prompt, chosen) for prompt, chosen, _ in pairs]
    report = run_checks(lambda q, r: [0.5] * len(r), ChecksConfig(), None, texts, calibrated=False)
    assert [check.name for check in report.failed] == ["score_spread"]
    assert "length_bias" not in [check.name for check in report.checks]  # undefined, so left out


def test_a_reward_with_nan_is_stopped_by_finite_scores(reward, pairs):
    def fails_on_empty(queries, responses):
        return [s if r else float("nan") for s, r in zip(reward(queries, responses), responses, strict=True)]

    some = [pair for pair in pairs if pair[2]]
    assert _failed(fails_on_empty, some) == ["finite_scores"]
    report = run_checks(fails_on_empty, CHECKS, some, None, calibrated=True)
    assert "200 on empty" in report.checks[0].detail
    assert _failed(lambda q, r: [float("nan")] * len(r), pairs)[0] == "finite_scores"


def test_a_reward_that_depends_on_its_batch_is_stopped_by_batch_agreement(reward, pairs):
    def centred(queries, responses):
        scores = np.array(reward(queries, responses))
        return (scores - scores.mean()).tolist()

    assert "batch_agreement" in _failed(centred, pairs)

    def padded(queries, responses):  # as a model that reads its padding would: the longest text matters to all
        longest = max(len(q + r) for q, r in zip(queries, responses, strict=True))
        return [score + 1e-3 * longest for score in reward(queries, responses)]

    assert _failed(padded, pairs) == ["degenerate", "batch_agreement"]  # an over-long text raises all of its batch


def test_a_reward_for_stutter_is_stopped_by_degenerate(reward, pairs):
    def stutter(queries, responses):
        repeats = [len(r.split()) > 1 and len(set(r.split())) == 1 for r in responses]
        return [s + 20 * again for s, again in zip(reward(queries, responses), repeats, strict=True)]

    some = [pair for pair in pairs if len(set(pair[2].split())) > 1]
    assert _failed(stutter, some) == ["degenerate"]
    report = run_checks(stutter, CHECKS, some, None, calibrated=True)
    assert report.metrics["degenerate_repeated"] == 1.0
    assert report.metrics["degenerate_shuffled"] < 0.5


def test_an_overconfident_model_is_stopped_by_calibration_where_its_scores_are_log_odds(reward, pairs):
    rng = np.random.default_rng(0)
    noisy = [(p, c, r) if rng.random() < 0.75 else (p, r, c) for p, c, r in pairs if r]  # a quarter labelled wrongly
    checks = CHECKS.model_copy(update={"min_accuracy": 0.6, "max_degenerate_win_rate": None})
    assert _failed(reward, noisy, checks) == ["calibration"]
    report = run_checks(reward, checks, noisy, None, calibrated=False)
    assert report.passed
    assert report.metrics["calibration_error"] > 0.15  # reported all the same
    assert report.metrics["overconfidence"] > 0.15


def test_a_model_that_claims_too_little_passes_as_after_ten_steps(reward, pairs):
    report = run_checks(lambda q, r: [0.02 * s for s in reward(q, r)], CHECKS, pairs, None, calibrated=True)
    report.raise_if_failed()
    assert report.metrics["calibration_error"] > 0.3  # it claims some 0.52 where 0.97 are in order


def test_a_few_pairs_are_refused_whatever_their_accuracy(reward, pairs):
    three = [pair for pair in pairs if pair[2]][:3]
    assert _failed(reward, three)[0] == "pairs"
    report = run_checks(reward, CHECKS, three, None, calibrated=True)
    assert str(report.checks[1]) == "pairs: the number of held-out pairs is 3 and must be at least 50 (of 3 at hand)"
    assert "no 95% interval: 3 pairs are too few" in str(report.checks[2])
    assert not {"accuracy_low", "accuracy_high"} & set(report.metrics)
    length = next(check for check in report.checks if check.name == "length_bias")
    assert length.threshold is None  # of three, any correlation is likely
    assert "3 pairs, too few to judge by" in length.detail


def test_the_message_names_figure_threshold_and_key():
    accuracy = Check.judge("accuracy", 0.5214, 0.6, "at least", "95% interval 0.46 to 0.58, 300 pairs")
    finite = Check.judge("finite_scores", 2, 0, "at most", "of 900 scores: 2 on empty")
    assert str(Check.judge("finite_scores", 0, 0, "at most", "all finite")) == (
        "finite_scores: the number of NaN or infinite scores is 0 and must be 0 (all finite)"
    )
    assert (accuracy.brief, finite.brief) == ("accuracy 0.521 (at least 0.6)", "finite_scores 2 (0)")
    assert Check.judge("accuracy", 0.5, None, "at least").brief == "accuracy 0.5 (not gated)"
    with pytest.raises(GateFailed) as error:
        CheckReport([accuracy]).raise_if_failed()
    assert str(error.value) == (
        "the reward failed its checks: accuracy: the lower bound of the share of held-out pairs with chosen above "
        "rejected is 0.5214 and must be at least 0.6 (95% interval 0.46 to 0.58, 300 pairs). Improve the reward or its "
        "data, or change the recipe's reward.checks.min_accuracy, which null switches off"
    )
    with pytest.raises(GateFailed, match=r"must be 0 \(of 900 scores: 2 on empty\)\. Make it finite for any text$"):
        CheckReport([finite]).raise_if_failed()


def test_what_does_not_apply_is_left_out_and_what_is_not_gated_passes(reward, pairs):
    texts = [(prompt, chosen) for prompt, chosen, _ in pairs]
    report = run_checks(reward, ChecksConfig(), None, texts, calibrated=False)
    assert report.accuracy is None
    assert not {"accuracy", "calibration_error", "probe_accuracy", "chosen_longer"} & set(report.metrics)
    assert {check.name for check in report.checks} == {
        "finite_scores", "length_bias", "score_spread", "degenerate", "batch_agreement",
    }  # fmt: skip
    off = ChecksConfig.model_validate(
        {name: None for name in ChecksConfig.model_fields if name.startswith(("min_", "max_"))}
    )
    flipped = run_checks(lambda q, r: [-score for score in reward(q, r)], off, pairs, None, calibrated=True)
    flipped.raise_if_failed()
    assert flipped.metrics["accuracy"] < 0.2


def test_a_reward_that_miscounts_is_refused(pairs):
    with pytest.raises(ModelError, match=r"shape \(1,\) for 300 texts"):
        run_checks(lambda q, r: [1.0], CHECKS, pairs, None, calibrated=True)


def test_checks_repeat_with_the_seed(reward, pairs, good):
    again = run_checks(reward, CHECKS, pairs, None, calibrated=True)
    assert again.metrics == good.metrics
    other = run_checks(reward, CHECKS, pairs, None, calibrated=True, seed=1)
    assert other.metrics["mean_chosen"] != good.metrics["mean_chosen"]  # other 300 of the 400 pairs


def test_report_shows_every_check_and_drawing(good, tmp_path):
    drawn = figures(good)
    assert set(drawn) == {"calibration.png", "scores.png", "length.png"}
    for name, figure in drawn.items():
        figure.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 10_000
    text = markdown(good, list(drawn))
    assert text.startswith("# Reward model checks: passed")
    assert all(f"| {check.name} | {check.what} | {check.figure:.4g} |" in text for check in good.checks)
    assert all(f"({name})" in text for name in drawn)
    failing = CheckReport(checks=[Check.judge("accuracy", 0.5, 0.6, "at least", "a|b\n c")])
    assert "FAILED: accuracy" in markdown(failing)
    assert "| 0.5 | at least 0.6 | **no** | a\\|b c |" in markdown(failing)


# ---------------------------------------------------------------- a real classifier

ASSETS = os.environ.get("RLHF_TEST_ASSETS")
SENTIMENT = ChecksConfig(
    pairs=200,
    probes=[
        ProbeConfig(better="I love this wonderful film", worse="I hate this awful film"),
        ProbeConfig(query="The acting", better=" was superb and moving.", worse=" was dreadful and dull."),
        ProbeConfig(
            query="This movie is", better=" one of the best I have seen.", worse=" one of the worst I have seen."
        ),
    ],
)


@pytest.mark.skipif(
    not ASSETS, reason="RLHF_TEST_ASSETS names no folder with data/imdb and models/distilbert-imdb-mini"
)
def test_an_honest_sentiment_classifier_passes_and_its_flip_is_stopped_by_probes():
    from rlhf_lib.rewards.build import build_reward
    from rlhf_lib.rewards.check_texts import real_texts

    recipe = Recipe.model_validate(
        {
            "name": "imdb",
            "data": {
                "prompts": {
                    "dataset": f"{ASSETS}/data/imdb",
                    "min_chars": 200,
                    "test": {"split": "test[:2000]"},
                    "query": {"kind": "first_tokens", "min": 2, "max": 8},
                }
            },
            "policy": {"model": f"{ASSETS}/models/gpt2-imdb-mini"},
            "reward": {"kind": "classifier", "model": f"{ASSETS}/models/distilbert-imdb-mini", "label": "POSITIVE"},
            "generation": {"max_new_tokens": 24},
        }
    )
    texts = real_texts(recipe, 200)
    assert len(texts) == 200
    assert all(len(query.split()) == 7 and 4 <= len(response.split()) <= 24 for query, response in texts)
    classifier = build_reward(recipe.reward, recipe.reward.model)
    run_checks(classifier, SENTIMENT, None, texts, calibrated=False).raise_if_failed()
    flipped = run_checks(lambda q, r: [-score for score in classifier(q, r)], SENTIMENT, None, texts, calibrated=False)
    assert [check.name for check in flipped.failed] == ["probes"]


def test_no_reward_has_to_score_a_blank_query_with_a_blank_response():
    """Prompts in a column of their own may be empty, and a whole text may be the query."""

    def strict(queries: list[str], responses: list[str]) -> list[float]:
        assert all((query + response).strip() for query, response in zip(queries, responses, strict=True))
        return [float(len(query + response) % 7) for query, response in zip(queries, responses, strict=True)]

    pairs = [("" if i % 2 else f"query {i}", f" good {i} answer", f" bad {i}") for i in range(20)]
    report = run_checks(strict, ChecksConfig(), pairs, None, calibrated=False)
    assert "degenerate_empty" in report.metrics  # of the ten with a query
    report = run_checks(
        strict, ChecksConfig(), [("", chosen, rejected) for _, chosen, rejected in pairs], None, calibrated=False
    )
    assert "degenerate_empty" not in report.metrics
    assert "degenerate_repeated" in report.metrics
    run_checks(strict, ChecksConfig(), None, [(f"query {i}", f" and {i} more") for i in range(20)], calibrated=False)
