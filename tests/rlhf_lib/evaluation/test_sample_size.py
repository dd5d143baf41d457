"""Too few held-out pairs are refused before anything is trained; small evaluations are told of."""

import pytest

from rlhf_lib.errors import DataError
from rlhf_lib.evaluation.sample_size import check_sample_sizes
from rlhf_lib.recipe import load_recipe, shipped
from tasks.data import _check_sizes


def recipe(*overrides):
    return load_recipe("embedded", list(overrides))


def test_enough_is_nothing_to_tell():
    assert check_sample_sizes(recipe(), 500, 500) == []
    assert check_sample_sizes(recipe(), 100, 100) == []
    assert check_sample_sizes(recipe("evaluation.prompts=120"), 500, None) == []


@pytest.mark.parametrize("name", shipped())
def test_what_the_shipped_recipes_draw_is_enough(name):
    loaded = load_recipe(name)
    assert check_sample_sizes(loaded, 1000, 1000 if loaded.data.preferences else None) == []


def test_small_but_allowed_is_a_warning_with_its_size():
    # half the width of a share's 95% interval at 0.5: 1.96 * 0.5 / sqrt(n)
    assert check_sample_sizes(recipe(), 64, 99) == [
        "only 64 evaluation prompts: the win rate is uncertain by up to 12 percentage points",
        "only 99 held-out pairs: the reward's accuracy is uncertain by up to 10 percentage points",
    ]
    assert len(check_sample_sizes(recipe("evaluation.prompts=64"), 500, 500)) == 1
    assert len(check_sample_sizes(recipe("reward.checks.pairs=64"), 500, 500)) == 1


def test_too_few_prompts_for_a_champion_are_told_beforehand():
    (warning,) = check_sample_sizes(recipe(), 1, None)
    assert warning == (
        "with 1 evaluation prompt this run's version can't become champion: registration.gates.min_prompts is 50. "
        "Evaluate on more (evaluation.prompts, data.prompts.held_out or .test), or lower min_prompts (null switches it "
        "off)"
    )
    for setting in ("registration.gates.min_prompts=null", "registration.promote=false"):
        assert check_sample_sizes(recipe(setting), 1, None) == [
            "only 1 evaluation prompt: the win rate is uncertain by up to 98 percentage points"
        ]


def test_too_few_pairs_are_refused_with_the_key_that_mends_it():
    with pytest.raises(DataError, match=r"on 3 held-out pairs: .*min_pairs is 50\. .*\(data\.preferences\.test\)"):
        check_sample_sizes(recipe(), 500, 3)
    rankings = "data.preferences={rankings: {feedback: [thumbs.csv]}}"
    with pytest.raises(DataError, match=r"on 1 held-out pair: .*\(data\.preferences\.rankings\.held_out\)"):
        check_sample_sizes(recipe(rankings), 500, 1)
    assert check_sample_sizes(recipe("reward.checks.min_pairs=3"), 500, 3)
    assert check_sample_sizes(recipe("reward.checks.min_pairs=null"), 500, 3)


def test_the_data_stage_counts_what_its_report_keeps(caplog):
    report = {"prompts": {"test": {"kept": 300}}, "preferences": {"test": {"kept": 60}}}
    _check_sizes(recipe(), report)
    assert [record.message for record in caplog.records if "only" in record.message] == [
        "data: only 60 held-out pairs: the reward's accuracy is uncertain by up to 13 percentage points"
    ]
    caplog.clear()
    _check_sizes(recipe(), report | {"tokenized": {"test": {"kept": 70}}, "preferences": {"test": {"kept": 600}}})
    assert "only 70 evaluation prompts" in caplog.text
    with pytest.raises(DataError, match="on 5 held-out pairs"):
        _check_sizes(recipe(), report | {"preferences": {"test": {"kept": 5}}})


def test_prompts_that_are_not_held_out_are_told_beforehand():
    closed = ("data.prompts.test=null", "data.prompts.held_out=0")
    (warning,) = check_sample_sizes(recipe(*closed), 8, None)
    assert warning.startswith(
        "no prompts are held out (data.prompts.held_out is 0), so this run's version can't become"
    )
    assert check_sample_sizes(recipe(*closed, "registration.gates.allow_unheld=true"), 8, None) == []
