"""Words that moved and next-token probes, against values by hand."""

import math

import pytest
import torch
from tiny_models import tiny_gpt2, word_tokenizer

from rlhf_lib.errors import RecipeError
from rlhf_lib.evaluation.measures import shifts
from rlhf_lib.evaluation.plots import probe_chart
from rlhf_lib.evaluation.probes import ProbeResult, next_token_differences
from rlhf_lib.recipe import TokenProbeConfig


def test_the_z_score_of_a_shift_by_hand():
    """20 words a side, 'good' from 2 to 10: prior 0.1 * 12 = 1.2 of 0.1 * 40 = 4."""
    before, after = ["good film " * 2 + "bad film " * 8], ["good film " * 10]
    found = {shift.word: shift for shift in shifts(before, after, least_z=0)}
    odds = [math.log((count + 1.2) / (20 + 4 - count - 1.2)) for count in (2, 10)]
    z = (odds[1] - odds[0]) / math.sqrt(1 / 3.2 + 1 / 11.2)
    assert (found["good"].before, found["good"].after) == (2, 10)
    assert found["good"].z == pytest.approx(z)
    assert found["film"].z == 0
    assert found["bad"].z < -1.96
    assert [shift.word for shift in shifts(before, after)] == ["good", "bad"]


def test_nothing_moves_between_equal_texts_or_in_empty_ones():
    assert shifts(["a b c"], ["a b c"]) == []
    assert shifts([""], [""]) == []
    assert shifts(["a a"], ["a"]) == []


def test_a_probe_is_the_difference_of_the_next_tokens_logits():
    model, tokenizer = tiny_gpt2(), word_tokenizer()
    probes = [
        TokenProbeConfig(prompt="w3 w4", token="w5", against="w6"),
        TokenProbeConfig(prompt="w7", token="w6", against="w5"),
    ]
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0, -1] for ids in ([3, 4], [7])]
    expected = [float(logits[0][5] - logits[0][6]), float(logits[1][6] - logits[1][5])]
    assert next_token_differences(model, tokenizer, probes) == pytest.approx(expected)


def test_words_that_begin_alike_are_refused():
    with pytest.raises(RecipeError, match=r"evaluation\.probes\.1: 'w5 w1' and 'w5' must begin with different tokens"):
        next_token_differences(
            tiny_gpt2(),
            word_tokenizer(),
            [
                TokenProbeConfig(prompt="w3", token="w5", against="w6"),
                TokenProbeConfig(prompt="w3", token="w5 w1", against="w5"),
            ],
        )


def test_the_chart_names_every_probe():
    figure = probe_chart([ProbeResult("This movie was", " good", " bad", -0.5, 1.5)])
    (label,) = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert label == "This movie was\ngood (+) / bad (-)"
