"""The judge of the embedded dialogues: hand-made answers, and every answer that the grammar makes."""

import pytest

from rlhf_lib.data import embedded
from rlhf_lib.data.embedded.judge import Verdict, helps, judge, measures, own_item, read

ASKED = "\n\nHuman: Hello. My red rug has not arrived. Where is it?\n\nAssistant:"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (" I can send a new red rug today, because you did not miss the driver.", None),  # not the grammar's order
        (" It is not too late, so it is possible to send a new red rug.", Verdict(True, True, True)),
        (" It is too late, so it is not possible to send a new red rug.", Verdict(True, False, True)),
        (" It is not too late, so it is possible to send a new blue lamp.", Verdict(True, True, False)),
        (" It is not too late, so it is possible to trace the parcel.", Verdict(True, True, None)),
        # what another topic does for its customers
        (" It is not too late, so it is possible to reset the password.", Verdict(True, False, None)),
        # a helpful core with an unhelpful tail, and with a helpful one
        (" Everybody makes mistakes, so of course we trace the parcel. You are right and our list is wrong. Goodbye.",
         Verdict(True, True, None)),
        (" Everybody makes mistakes, so of course we trace the parcel. Our list is right and you are wrong. Goodbye.",
         Verdict(True, False, None)),
        # half-hearted, and nothing at all
        (" I can trace the parcel, if you can drive to the depot.", Verdict(True, False, None)),
        (" I see. It depends. Take care.", Verdict(True, False, None)),
        ("", Verdict(False, False, None)),
        # words lost; the item in it counts all the same
        (" It is not too late, so it is possible send a new red rug.", Verdict(False, False, True)),
        (" I am sorry about the red", Verdict(False, False, None)),
    ],
)  # fmt: skip
def test_verdicts(answer, verdict):
    assert judge(ASKED, answer) == (verdict or Verdict(False, False, True))


def test_two_items_of_which_one_is_not_the_customers():
    said = " So this is about the red rug. It is not too late, so it is possible to send a new red lamp."
    assert judge(ASKED, said) == Verdict(True, True, False)
    assert own_item([ASKED], [said]) == [-1.0]


def test_as_rewards_and_as_a_metric():
    new = ASKED.replace("red rug", "black rug")
    assert "black rug" in embedded.topics()[0].new_items
    queries = [ASKED, ASKED, new, new]
    answers = [
        " First we send a new red rug, and then you can have a rest.",
        " First we trace the parcel, and then you can have a rest.",
        " First we send a new red rug, and then you can have a rest.",
        " First you drive to the depot, and then you can have a rest.",
    ]
    assert helps(queries, answers) == [1.0, 1.0, 1.0, 0.0]
    assert own_item(queries, answers) == [1.0, 0.0, -1.0, 0.0]
    assert measures(queries, answers, samples=[], tokenizer=None) == {
        "well_formed": [1.0, 1.0, 1.0, 1.0],
        "helpful": [1.0, 1.0, 1.0, 0.0],
        "names_own_item": [1.0, 0.0, 0.0, 0.0],
        "serves": [1.0, 1.0, 0.0, 0.0],
        "own_item": [1.0, None, 0.0, None],
        "serves_new": [None, None, 0.0, 0.0],
        "own_item_new": [None, None, 0.0, None],
    }


def test_every_answer_of_the_grammar_is_read_as_it_was_meant():
    """All parse; the chosen ones are about the customer's item, and but for a few half-hearted ones helpful; where the
    rejected one differs by a slip, the judge sees it."""
    pairs = embedded.load("test")
    queries, chosen = zip(*(split(dialogue) for dialogue in pairs["chosen"]), strict=True)
    rejected = [split(dialogue)[1] for dialogue in pairs["rejected"]]
    assert all(read(answer.strip()) for answer in [*chosen, *rejected])
    better, worse = (measures(queries, side) for side in (chosen, rejected))
    assert all(value in (1.0, None) for value in better["own_item"])
    assert sum(better["helpful"]) / len(pairs) > 0.9
    assert sum(better["names_own_item"]) / len(pairs) > 0.6
    assert not any(worse["serves"])


def split(dialogue: str) -> tuple[str, str]:
    prompt, mark, answer = dialogue.rpartition("\n\nAssistant:")
    return prompt + mark, answer
