"""What a language model is asked, and how its reply is read."""

from __future__ import annotations

import pytest

from rlhf_lib.evaluation.llm.prompt import DEFAULT, fill, read_verdict, share_of_second


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("[[A]]", "A"),
        ("B is clearer.\n\nFinal verdict: **[[B]]**\n", "B"),
        ("[[C]] as I said: [[C]]", "C"),
        ("<think>maybe [[A]]?\nno</think>\n[[B]]", "B"),
        ("[[A]] or [[B]]", None),
        ("A", None),
        ("[A]", None),
        ("[[D]]", None),
        ("[[a]]", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_strictly(reply, verdict):
    assert read_verdict(reply) == verdict


@pytest.mark.parametrize(
    ("orders", "share"),
    [("BA", 1.0), ("AB", 0.0), ("AA", 0.5), ("BB", 0.5), ("CC", 0.5), ("CA", 0.5), ("BC", 0.5), ("AC", 0.5)],
)
def test_only_a_winner_in_both_orders_wins(orders, share):
    """In the first order the second answer stands as B, in the second as A."""
    assert share_of_second(*orders) == share


def test_texts_stay_as_they_are():
    template = "{conversation}|{answer_a}|{answer_b}|{other}"
    assert fill(template, " {answer_b}\n", "{conversation} \\1 {}", "b") == "{answer_b}|{conversation} \\1 {}|b|{other}"
    filled = fill(DEFAULT, "why?", "because", "so")
    assert filled.index("why?") < filled.index("because") < filled.index("\nso\n")
    assert "{" not in filled
