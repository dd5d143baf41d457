"""Conversations as texts, and back."""

import copy
import pickle

import pytest
from datasets import Dataset

from rlhf_lib.conversation import Conversation, checked_messages, columns_of, dialogue_messages, in_full, prompts_of
from rlhf_lib.errors import DataError

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "And you?"},
]
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And you?\n\nAssistant:"


def test_a_conversation_reads_as_the_dialogue_that_it_is():
    conversation = Conversation(TURNS)
    assert conversation == DIALOGUE
    assert conversation.messages == TURNS
    assert in_full(conversation, "Fine.") == f"{DIALOGUE} Fine."
    assert in_full("Once", " upon") == "Once upon"


def test_a_dialogue_is_a_conversation_without_its_last_answer():
    assert Conversation.of(DIALOGUE).messages == TURNS
    assert Conversation.of(f"{DIALOGUE} Fine.").messages == TURNS
    assert dialogue_messages(f"{DIALOGUE} Fine.")[-1] == {"role": "assistant", "content": "Fine."}


def test_any_other_text_is_a_turn_of_the_users_with_its_marks():
    asked = 'What does "\n\nAssistant:" mean?'
    assert Conversation.of(asked).messages == [{"role": "user", "content": asked}]


def test_a_system_message_comes_first_and_once():
    told = Conversation.of("Hi", "Be brief.")
    assert told == "\n\nSystem: Be brief.\n\nHuman: Hi\n\nAssistant:"
    assert told.after("Be long.") is told
    assert Conversation.of(str(told)).messages == told.messages


def test_copies_and_pickles_keep_the_messages():
    conversation = Conversation(TURNS)
    for again in (copy.copy(conversation), copy.deepcopy(conversation), pickle.loads(pickle.dumps(conversation))):
        assert (again, again.messages) == (conversation, TURNS)


def test_a_data_set_keeps_the_messages_beside_the_texts():
    prompts = [Conversation(TURNS), "plain"]
    rows = Dataset.from_dict(columns_of(prompts, "query"))
    assert list(rows["query"]) == [DIALOGUE, "plain"]
    again = prompts_of(rows, "query")
    assert again == prompts
    assert [getattr(one, "messages", None) for one in again] == [TURNS, None]
    assert "messages" not in columns_of(["plain"], "query")


@pytest.mark.parametrize(
    "value", [[{"role": "user"}], "text", [], [{"role": "user", "content": None}], [{"role": 1, "content": "x"}]]
)
def test_what_is_no_list_of_messages_is_refused_by_name(value):
    with pytest.raises(DataError, match=r"^row 3"):
        checked_messages(value, "row 3")
