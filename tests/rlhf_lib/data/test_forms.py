"""The forms of data sets: which prompt and which answers each row is, for chat models and for others; what is dropped
and counted; what is refused, in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_lib.conversation import Conversation, prompts_of
from rlhf_lib.data.forms import PairRow, read_answers, read_pairs
from rlhf_lib.data.labelled import LabelledTexts, load_labelled
from rlhf_lib.data.preferences import Pairs, load_preferences
from rlhf_lib.data.sources import load_split
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import PreferencesConfig, Recipe, SourceConfig

ELSEWHERE = {"prompt": "Elsewhere?", "chosen": "1", "rejected": "2"}
BE_BRIEF = {"role": "system", "content": "Be brief."}


def user(content) -> dict:
    return {"role": "user", "content": content}


def assistant(content) -> dict:
    return {"role": "assistant", "content": content}


def dialogue(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant:{answer}"


@pytest.fixture
def write(tmp_path) -> Callable[..., str]:
    def written(rows: list[dict], name: str = "rows") -> str:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / f"{name}.jsonl")

    return written


@pytest.fixture
def load(write) -> Callable[..., Pairs]:
    """The pairs of one or several sets of rows."""

    def loaded(*sets: list[dict], chat: bool = False, system: str | None = None, **settings) -> Pairs:
        files = [write(rows, f"set{number}") for number, rows in enumerate(sets)]
        test = ELSEWHERE | ({settings["margin"]: 1} if "margin" in settings else {})
        preferences = {"train": {"dataset": files if len(files) > 1 else files[0]}, "test": {"dataset": write([test])}}
        data = {"prompts": {"dataset": files[0]}, "preferences": preferences | settings}
        recipe = {"name": "x", "data": data, "policy": {"model": "gpt2", "system": system}}
        return load_preferences(Recipe.model_validate(recipe), chat=chat)

    return loaded


def dropped(pairs: Pairs) -> dict[str, int]:
    return {reason: count for reason, count in pairs.report["train"]["dropped"].items() if count}


# ------------------------------------------------------------------------------------------ what each form says

TEA = [user("Tea?")]
TALK = [user("Tea?"), assistant("Yes."), user("Hot?")]
FORMS = {
    "answers beside a prompt": ({"prompt": "Tea?", "chosen": "Yes.\n", "rejected": "No."}, TEA, "Tea?"),
    "answers that repeat the prompt": ({"prompt": "Tea?", "chosen": "Tea? Yes.", "rejected": "Tea? No."}, TEA, "Tea?"),
    "whole dialogues": (
        {"chosen": dialogue("Tea?", " Yes."), "rejected": dialogue("Tea?", " No.")},
        TEA,
        dialogue("Tea?", ""),
    ),
    "a dialogue beside answers": (
        {"prompt": dialogue("Tea?", " Yes.") + dialogue("Hot?", ""), "chosen": "Yes.", "rejected": "No."},
        TALK,
        dialogue("Tea?", " Yes.") + dialogue("Hot?", ""),
    ),
    "messages": ({"prompt": TALK, "chosen": [assistant(" Yes.\n")], "rejected": [assistant("No.")]}, TALK, None),
    "messages and answers that repeat them": (
        {"prompt": TEA, "chosen": [*TEA, assistant("Yes.")], "rejected": [*TEA, assistant("No.")]},
        TEA,
        None,
    ),
    "messages, answers as texts": ({"prompt": TEA, "chosen": "Yes.", "rejected": "No."}, TEA, None),
    "a text, answers as messages": (
        {"prompt": "Tea?", "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]},
        TEA,
        "Tea?",
    ),
    "conversations (Skywork)": (
        {"chosen": [*TALK, assistant("Yes.")], "rejected": [*TALK, assistant("No.")], "source": "magpie"},
        TALK,
        None,
    ),
    "conversations beside their prompt (UltraFeedback)": (
        {
            "prompt": "Tea?",
            "prompt_id": "2f0c",
            "chosen": [*TEA, assistant("Yes.")],
            "rejected": [*TEA, assistant("No.")],
            "messages": [*TEA, assistant("Yes.")],
            "score_chosen": 8.5,
            "score_rejected": 2.0,
        },
        TEA,
        None,
    ),
    "two responses compared (HelpSteer3)": (
        {"context": TALK, "response1": "Yes.", "response2": "No.", "overall_preference": -3, "domain": "general"},
        TALK,
        None,
    ),
    "the second of them better": (
        {"context": TALK, "response1": "No.", "response2": "Yes.", "overall_preference": 1},
        TALK,
        None,
    ),
    "from and value (ShareGPT)": (
        {
            "conversations": [{"from": "human", "value": "Tea?"}],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        TEA,
        None,
    ),
    "messages with other keys here and there": (
        {
            "chosen": [*TEA, assistant("Yes.") | {"name": "Ann"}],
            "rejected": [user("Tea?") | {"id": 1}, assistant("No.")],
        },
        TEA,
        None,
    ),
    "a system message": (
        {"chosen": [BE_BRIEF, *TEA, assistant("Yes.")], "rejected": [BE_BRIEF, *TEA, assistant("No.")]},
        [BE_BRIEF, *TEA],
        None,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_completion_model_gets_texts_that_its_answers_join(load, form) -> None:
    row, messages, text = FORMS[form]
    expected = Conversation(messages) if text is None else text
    assert load([row]).train.to_list() == [{"prompt": str(expected), "chosen": " Yes.", "rejected": " No."}]


@pytest.mark.parametrize("form", FORMS)
def test_a_chat_model_gets_conversations_and_what_the_assistant_says(load, form) -> None:
    row, messages, _ = FORMS[form]
    pairs = load([row], chat=True)
    assert pairs.train.to_list() == [
        {"prompt": str(Conversation(messages)), "messages": messages, "chosen": "Yes.", "rejected": "No."}
    ]
    assert prompts_of(pairs.train, "prompt")[0].messages == messages


def test_the_text_of_messages_is_a_dialogue(load) -> None:
    row = {"prompt": [BE_BRIEF, *TALK], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}
    told = "\n\nSystem: Be brief.\n\nHuman: Tea?\n\nAssistant: Yes.\n\nHuman: Hot?\n\nAssistant:"
    for chat in (False, True):
        assert load([row], chat=chat).train["prompt"][0] == told


def test_the_recipes_system_message_begins_conversations_without_one(load) -> None:
    rows = [
        {"prompt": TEA, "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]},
        {"prompt": [BE_BRIEF, user("Ice?")], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]},
    ]
    pairs = load(rows, chat=True, system="Be kind.")
    assert sorted((told[0]["content"], told[-1]["content"]) for told in pairs.train["messages"]) == [
        ("Be brief.", "Ice?"),
        ("Be kind.", "Tea?"),
    ]
    assert pairs.test["messages"][0] == [{"role": "system", "content": "Be kind."}, user("Elsewhere?")]


@pytest.mark.parametrize("chat", [False, True])
def test_an_implicit_prompt_is_the_explicit_one(load, chat) -> None:
    explicit = [{"prompt": TALK, "chosen": [assistant(f"{i}")], "rejected": [assistant("No.")]} for i in range(5)]
    implicit = [{side: TALK + row[side] for side in ("chosen", "rejected")} for row in explicit]
    assert load(explicit, chat=chat).train.to_list() == load(implicit, chat=chat).train.to_list()


def test_the_margin_is_how_strong_the_preference_is(load) -> None:
    rows = [
        {"context": [user(str(by))], "response1": "one", "response2": "two", "overall_preference": by}
        for by in (-3, -1, 0, 2)
    ]
    pairs = load(rows, margin="overall_preference")
    found = {row["prompt"].split()[1]: (row["chosen"].strip(), row["margin"]) for row in pairs.train}
    assert found == {"-3": ("one", 3.0), "-1": ("one", 1.0), "2": ("two", 2.0)}
    assert dropped(pairs) == {"tie": 1}
    assert pairs.report["train"]["kept"] == 3
    scored = [row | {"gap": -0.5} for row in rows]  # another column is what it says
    assert set(load(scored, margin="gap").train["margin"]) == {-0.5}


# ------------------------------------------------------------------------------------------ what is dropped


@pytest.mark.parametrize("chat", [False, True])
def test_what_is_no_pair_is_counted(load, chat) -> None:
    two = [assistant("Wait."), assistant("Yes.")]
    rows = [
        {"chosen": [*TEA, assistant("Yes.")], "rejected": [*TEA, assistant("No.")]},
        {"chosen": [*TEA, *two], "rejected": [*TEA, assistant("No.")]},
        {"chosen": [*TALK, assistant("Yes.")], "rejected": [*TEA, assistant("No.")]},
        {"chosen": [*TEA, user("Hot?")], "rejected": [*TEA, assistant("No.")]},
        {"chosen": [*TEA, assistant("Yes.")], "rejected": []},
        {"chosen": [*TEA, assistant("Yes.")], "rejected": None},
        {"chosen": [user("Ice?"), assistant("Yes.")], "rejected": [user("Tea!"), assistant("No.")]},
        {"chosen": [BE_BRIEF, user("Ice?"), assistant("Yes.")], "rejected": [BE_BRIEF, *TEA, assistant("No.")]},
        {"chosen": [assistant("Yes.")], "rejected": [assistant("No.")]},
        {"chosen": [BE_BRIEF, assistant("Yes.")], "rejected": [BE_BRIEF, assistant("No.")]},
        {"chosen": [*TEA, assistant("Yes.")], "rejected": [*TEA, assistant("Yes. ")]},
        {"chosen": [*TEA, assistant("Yes.")], "rejected": [*TEA, assistant(" ")]},
        {"chosen": [*TEA, assistant(" Yes.")], "rejected": [*TEA, assistant("No.")]},
    ]
    pairs = load(rows, chat=chat)
    assert dropped(pairs) == {
        "no single answer": 5,
        "prompts differ": 2,
        "no prompt": 2,
        "identical answers": 1,
        "empty answer": 1,
        "repeated pair": 1,
    }
    assert len(pairs.train) == 1


@pytest.mark.parametrize("chat", [False, True])
def test_test_prompts_leave_training_whatever_their_form(load, chat) -> None:
    row = {"chosen": [user("Elsewhere?"), assistant("Yes.")], "rejected": [user("Elsewhere?"), assistant("No.")]}
    if chat:  # the test pair's text is a user's turn too
        with pytest.raises(DataError, match="filter 'prompt in test' left none of 1 rows"):
            load([row], chat=True)
    else:
        assert load([row]).train["prompt"][0] == dialogue("Elsewhere?", "")


# ------------------------------------------------------------------------------------------ several sets


@pytest.mark.parametrize("chat", [False, True])
def test_joined_sets_have_each_their_own_form(load, chat) -> None:
    texts = [{"prompt": f"Q {i}", "chosen": "Yes.", "rejected": "No.", "label": "a"} for i in range(3)]
    talks = [
        {"chosen": [user(f"M {i}"), assistant("Yes.")], "rejected": [user(f"M {i}"), assistant("No.")]}
        for i in range(2)
    ]
    compared = [
        {"context": [user("C")], "response1": "No.", "response2": "Yes.", "overall_preference": 2, "label": [1]}
    ]
    dialogues = [{"chosen": dialogue("D", " Yes."), "rejected": dialogue("D", " No.")}]
    pairs = load(texts, talks, compared, dialogues, chat=chat)
    asked = ["Q 0", "Q 1", "Q 2"]
    assert sorted(pairs.train["prompt"]) == sorted(
        [
            *(dialogue(question, "") if chat else question for question in asked),
            *(dialogue(question, "") for question in ("M 0", "M 1", "C", "D")),
        ]
    )
    assert {row["chosen"] for row in pairs.train} == ({"Yes."} if chat else {" Yes."})
    assert [one["taken"] for one in pairs.report["train"]["sets"].values()] == [3, 2, 1, 1]


def test_transfer_pairs_have_a_form_of_their_own(load, write) -> None:
    other = write([{"context": TALK, "response1": "Yes.", "response2": "No.", "overall_preference": -1}], "other")
    pairs = load([FORMS["messages"][0] | {"prompt": TEA}], chat=True, transfer={"dataset": other})
    assert pairs.transfer is not None
    assert pairs.transfer.to_list() == [
        {"prompt": str(Conversation(TALK)), "messages": TALK, "chosen": "Yes.", "rejected": "No."}
    ]


# ------------------------------------------------------------------------------------------ what is refused

GOOD = {"chosen": [*TEA, assistant("Yes.")], "rejected": [*TEA, assistant("No.")]}
PARTS = [{"type": "text", "text": "Tea?"}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"question": "Tea?", "good": "Yes.", "bad": "No."}],
            "column 'chosen' not found in {set} (available: question, good, bad). Set data.preferences.chosen, or "
            'write rows such as {{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}}',
        ),
        (
            [{"prompt": "Tea?", "completion": "Yes.", "label": True}],
            "{set}: 'completion' and 'label' are answers judged one by one, no pairs. Train a classifier on them: "
            "data.labelled instead of data.preferences, and reward.kind classifier with reward.label desirable",
        ),
        (
            [{"prompt": "Tea?", "chosen": [assistant("Yes.")], "rejected": "No."}],
            "{set}: column 'chosen' holds chat messages, but column 'rejected' doesn't: make both texts, or both lists "
            "of messages {{role, content}}",
        ),
        (
            [GOOD, GOOD | {"chosen": [{"content": "Tea?"}, assistant("Yes.")]}],
            "{set}, row 1, column 'chosen' is [{{'content': 'Tea?'}}, {{'role': 'assistant', 'content': 'Yes.'}}], no "
            "list of messages {{role, content}}",
        ),
        (
            [GOOD, GOOD | {"rejected": [*TEA, assistant(None)]}],
            "{set}, row 1, column 'rejected': a message has role 'assistant' and content None: both must be text",
        ),
        (
            [GOOD | {"chosen": [user(PARTS), assistant("Yes.")]}],
            "{set}, row 0, column 'chosen': a message has role 'user' and content [{{'type': 'text', 'text': 'Tea?'}}]"
            ": both must be text",
        ),
        (
            [GOOD | {"chosen": [{"role": 1, "content": "Tea?"}, {"role": 2, "content": "Yes."}]}],
            "{set}, row 0, column 'chosen': a message has role 1 and content 'Tea?': both must be text",
        ),
        (
            [{"prompt": [{"text": "Tea?"}], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}],
            "{set}, row 0, column 'prompt' is [{{'text': 'Tea?'}}], no list of messages {{role, content}}",
        ),
        (
            [{"context": TEA, "response1": "Yes.", "response2": "No.", "overall_preference": None}],
            "{set}, row 0: column 'overall_preference' holds None, not a number. Rows without a preference are no "
            "pairs: leave them out",
        ),
        (
            [{"context": TEA, "response1": "Yes.", "response2": "No.", "overall_preference": 0}],
            "{set}: filter 'tie' left none of 1 rows (tie dropped 1). Every overall_preference is 0",
        ),
        (
            [{"chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}],
            "{set}: filter 'no prompt' left none of 1 rows (no prompt dropped 1). Answers alone need a column 'prompt' "
            "beside them, whole conversations a message of the user's",
        ),
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_another_form_is_refused_in_a_line(load, tmp_path, rows, message, chat) -> None:
    with pytest.raises(DataError) as refused:
        load(rows, chat=chat)
    assert str(refused.value) == message.format(set=f"data set {tmp_path}/set0.jsonl (split train)")


def test_of_joined_sets_the_one_at_fault_is_named(load, tmp_path) -> None:
    with pytest.raises(DataError, match=r"^data set .*/set1\.jsonl \(split train\), row 1, column 'chosen': a message"):
        load([ELSEWHERE], [GOOD, GOOD | {"chosen": [*TEA, assistant(None)]}])


# ------------------------------------------------------------------------------------------ one by one


@pytest.fixture
def judge(write) -> Callable[..., LabelledTexts]:
    def loaded(rows: list[dict], chat: bool = False, test: list[dict] | None = None, **labelled) -> LabelledTexts:
        test = test or [{"prompt": "Elsewhere?", "completion": "1", "label": True}]
        sources = {"train": {"dataset": write(rows, "train")}, "test": {"dataset": write(test, "test")}}
        data = {"prompts": {"dataset": "unused"}, "labelled": sources | labelled}
        reward = {"kind": "classifier", "label": "desirable", "train": {"from_scratch": {}}}
        recipe = {"name": "x", "data": data, "policy": {"model": "unused"}, "reward": reward}
        return load_labelled(Recipe.model_validate(recipe), chat=chat)

    return loaded


JUDGED = {
    "texts": {"prompt": "Tea?", "completion": "Yes."},
    "messages": {"prompt": TEA, "completion": [assistant("Yes.")]},
    "whole conversations": {"prompt": "Tea?", "completion": [*TEA, assistant("Yes.")]},
    "no prompt beside them": {"completion": [*TEA, assistant("Yes.")]},
}


@pytest.mark.parametrize("form", JUDGED)
@pytest.mark.parametrize("chat", [False, True])
def test_answers_judged_one_by_one_are_labelled_texts(judge, form, chat) -> None:
    row = JUDGED[form]
    other = row | {
        "completion": "No." if isinstance(row["completion"], str) else [*row["completion"][:-1], assistant("No.")]
    }
    found = judge([row | {"label": True}, other | {"label": False}], chat)
    assert found.names == ["undesirable", "desirable"]
    prompt = "Tea?" if form == "texts" and not chat else dialogue("Tea?", "")
    messages = {"messages": TEA} if chat else {}
    space = "" if chat else " "
    assert sorted(found.train.to_list(), key=lambda row: row["text"]) == [
        {"text": f"{prompt} {said}", "labels": [good], "prompt": prompt, "completion": space + said} | messages
        for said, good in (("No.", 0), ("Yes.", 1))
    ]


def test_answers_that_cannot_be_used_are_counted(judge) -> None:
    rows = [
        {"prompt": TEA, "completion": [assistant("Yes.")], "label": True},
        {"prompt": TEA, "completion": [assistant("No.")], "label": False},
        {"prompt": TEA, "completion": [assistant("Wait."), assistant("No.")], "label": False},
        {"prompt": TEA, "completion": [assistant(" ")], "label": False},
        {"prompt": [BE_BRIEF], "completion": [assistant("Yes.")], "label": True},
        {"prompt": TEA, "completion": [assistant("So.")], "label": None},
    ]
    assert judge(rows).report["train"]["dropped"] == {
        "no prompt": 1,
        "no single answer": 1,
        "empty": 1,
        "no label": 1,
        "duplicate": 0,
        "in test": 0,
    }


def test_names_of_ones_own_and_conversations_in_a_text_column(judge) -> None:
    rows = [{"talk": [*TEA, assistant(said)], "kind": kind} for said, kind in (("Yes.", "kind"), ("No.", "rude"))]
    test = [{"talk": [*TALK, assistant("No.")], "kind": "rude"}]
    found = judge(rows, test=test, text="talk", label="kind")
    assert found.names == ["kind", "rude"]
    assert found.test.to_list() == [
        {"text": f"{Conversation(TALK)} No.", "labels": [1], "prompt": str(Conversation(TALK)), "completion": " No."}
    ]


@pytest.mark.parametrize(
    ("rows", "chat", "message"),
    [
        (
            [{"prompt": "Tea?", "completion": said, "label": True} for said in ("Yes.", "No.")],
            False,
            r"train\.jsonl \(split train\): every 'label' is True, and a classifier needs answers of both kinds\. Add",
        ),
        (
            [{"text": said, "label": said == "Yes."} for said in ("Yes.", "No.")],
            True,
            r"^data\.labelled: some sets hold answers to prompts, others texts alone.*give all a prompt",
        ),
        (
            [{"prompt": TEA, "completion": [assistant(None)], "label": True}],
            False,
            r"row 0, column 'completion': a message has role 'assistant' and content None: both must be text$",
        ),
        (
            [{"prompt": "Tea?", "completion": "Yes.", "good": True}],
            False,
            r"column 'label' not found in .*completion, good\)\. Set data\.labelled\.label",
        ),
        (
            [{"question": "Tea?", "answer": "Yes.", "label": True}],
            False,
            r"column 'text' not found in .*question, answer, label\)\. Set data\.labelled\.text",
        ),
    ],
)
def test_labelled_answers_that_are_refused(judge, rows, chat, message) -> None:
    with pytest.raises(DataError, match=message):
        judge(rows, chat)


def test_the_rows_that_the_documentation_shows_are_of_these_forms(write) -> None:
    page = (Path(__file__).parents[3] / "docs/how-to/own-data.md").read_text()
    shown = [json.loads(row) for row in re.findall(r"\| `(\{.*\})` \|$", page, re.MULTILINE)]
    assert len(shown) == 7
    prompt = str(Conversation([user("2 + 2?")]))
    for number, row in enumerate(shown):
        rows = load_split(SourceConfig(dataset=write([row], f"shown{number}")))
        if "completion" in row:
            assert [read[:2] for read in read_answers(rows, "text", "x", "")] == [("2 + 2?", "4")]
        else:
            (read,) = read_pairs(rows, PreferencesConfig(), "x")
            assert (read.chosen.strip(), read.rejected.strip(), read.reason) == ("4", "5", None)
            assert read.prompt in ("2 + 2?", prompt)


def test_rows_are_read_in_their_order(write) -> None:
    pairs = load_split(SourceConfig(dataset=write([ELSEWHERE, ELSEWHERE | {"prompt": "Then?"}])))
    assert read_pairs(pairs, PreferencesConfig(), "x")[1] == PairRow("Then?", "Then?", "1", "2", None)
    answers = load_split(
        SourceConfig(dataset=write([{"prompt": "Tea?", "completion": "Yes."}, {"prompt": "Ice?"}], "two"))
    )
    assert [row.answer for row in read_answers(answers, "text", "x", "data.labelled.text")] == ["Yes.", ""]
