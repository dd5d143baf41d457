"""The rows that a reward is checked on without pairs: their columns, and conversations."""

from __future__ import annotations

import pytest
from chat_models import chat_folder
from datasets import Dataset

from rlhf_lib.conversation import Conversation, user
from rlhf_lib.recipe import Recipe
from rlhf_lib.rewards.check_texts import has_answers, real_rows


def recipe(rows: list[dict], folder, model: str = "none", **prompts) -> Recipe:
    Dataset.from_list(rows).to_json(folder / "rows.jsonl")
    section = {"dataset": str(folder / "rows.jsonl"), "query": {"kind": "text"}} | prompts
    reward = {"kind": "function", "function": "none:none"}
    sections = {"name": "x", "data": {"prompts": section}, "policy": {"model": model}, "reward": reward}
    return Recipe.model_validate(sections)


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def test_columns_stay_with_their_rows(tmp_path):
    rows = [{"text": f"w{i} and w{i}", "solution": i, "level": str(i), "chosen": "x"} for i in range(20)]
    for names, expected in ((None, {"solution", "level"}), (["level"], {"level"}), ([], set())):
        texts, columns = real_rows(recipe(rows, tmp_path, columns=names), 8)
        assert len(texts) == 8
        assert set(columns) == expected
        if "level" in columns:
            assert [query.split()[0] for query, _ in texts] == [f"w{level}" for level in columns["level"]]
    assert not has_answers(recipe(rows, tmp_path))


def test_of_messages_the_last_answer_is_the_response(tmp_path):
    asked = [user("Hi"), assistant("Hello"), user("And you?")]
    told = recipe([{"messages": [*asked, assistant("Fine.")], "solution": 1}], tmp_path, column="messages")
    assert has_answers(told)
    assert real_rows(told, 5) == ([(Conversation(asked), "Fine.")], {"solution": [1]})
    assert real_rows(told, 5)[0][0][0].messages == asked
    first = recipe(
        [{"messages": [*asked, assistant("Fine.")]}], tmp_path, column="messages", query={"kind": "first_turn"}
    )
    assert real_rows(first, 5)[0] == [("Hi", "Hello")]
    bare = recipe([{"messages": asked}], tmp_path, column="messages")
    assert not has_answers(bare)
    assert real_rows(bare, 5)[0] == [(Conversation([*asked[:2], user("And")]), " you?")]


@pytest.mark.parametrize("kind", ["text", "dialogue"])
def test_a_chat_policys_queries_are_conversations(tmp_path, kind):
    model = str(chat_folder(tmp_path / "model"))
    text = "\n\nHuman: Who?\n\nAssistant: Me." if kind == "dialogue" else "Who is it?"
    chat = recipe([{"text": text}], tmp_path, model, query={"kind": kind})
    chat.policy.system = "Be brief."
    ((query, response),) = real_rows(chat, 5)[0]
    assert isinstance(query, Conversation)
    assert query.messages[0] == {"role": "system", "content": "Be brief."}
    assert query.messages[1:] == [user("Who?" if kind == "dialogue" else "Who is")]
    assert response == (" Me." if kind == "dialogue" else " it?")
