"""hh-rlhf's dialogues: where a prompt ends, and the tutorial's first turn."""

import pytest

from rlhf_lib.data.dialogue import first_exchange, first_turn, split_dialogue
from rlhf_lib.errors import DataError

ONE = "\n\nHuman: What is tea?\n\nAssistant: A drink."
TWO = ONE + "\n\nHuman: Hot?\n\nAssistant: Mostly.\nNot always. \n"


def test_the_prompt_ends_with_the_last_assistant_mark() -> None:
    assert split_dialogue(ONE) == ("\n\nHuman: What is tea?\n\nAssistant:", " A drink.")
    assert split_dialogue(TWO) == (ONE + "\n\nHuman: Hot?\n\nAssistant:", " Mostly.\nNot always.")


def test_a_human_turn_after_the_answer_is_no_part_of_it() -> None:
    assert split_dialogue(ONE + "\n\nHuman: Thanks!") == split_dialogue(ONE)


def test_the_first_exchange_is_a_question_and_its_answer() -> None:
    assert first_exchange(ONE) == first_exchange(TWO) == ("What is tea?", " A drink.")
    assert first_exchange("\n\nHuman: one\n\nHuman: two\n\nAssistant: x") == ("one", "")


def test_an_empty_answer_stays_empty() -> None:
    assert split_dialogue("\n\nHuman: Hi\n\nAssistant:")[1] == ""
    assert split_dialogue("\n\nHuman: Hi\n\nAssistant: \n")[1] == ""


@pytest.mark.parametrize(
    ("text", "query"),
    [
        (TWO, "What is tea?"),
        ("\n\nHuman: one\ntwo \n\nAssistant: x", "one two"),
        ("\n\nHuman:no space\n\nAssistant: x", "no space"),  # the published code cuts the first letter here
        ("\n\nHuman: what does 'Assistant:' mean?\n\nAssistant: x", "what does 'Assistant:' mean?"),
        ("\n\nHuman: one\n\nHuman: two\n\nAssistant: x", "one"),
    ],
)
def test_first_turn(text: str, query: str) -> None:
    assert first_turn(text) == query


@pytest.mark.parametrize(
    "text", ["", "A plain review.", "Human: hi\n\nAssistant: x", "\n\nHuman: hi", "\n\nAssistant: x"]
)
@pytest.mark.parametrize("parse", [split_dialogue, first_turn])
def test_what_is_no_dialogue_is_shown(parse, text: str) -> None:
    with pytest.raises(DataError, match="is not a dialogue: it begins") as refused:
        parse(text)
    assert repr(text[:60]) in str(refused.value)
