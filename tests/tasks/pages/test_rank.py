"""The page for ranking: what it shows, what it takes, and that nothing counts twice."""

import pytest
from annotated import Person, annotated, task_of

from tasks.annotation import exchange

RANKS = {"a": 1, "b": 3, "c": 3}


def test_a_task_is_shown_ranked_and_undone(tmp_path):
    database = annotated(tmp_path, 3)
    ann = Person(database, "ann")
    page = ann.get("/rank")
    data = task_of(page)
    assert "<b>helpful</b>" in page.text
    assert '<b id="judged">0</b> judged, <span id="left">3</span> left' in page.text
    assert sorted(data["keys"].values()) == ["a", "b", "c"]
    assert "secret-model" not in page.text  # whose answers they are
    assert task_of(ann.get("/rank")) == data  # loaded again
    sent = {"task": data["task"], "submission": "0123456789", "ranks": RANKS, "comment": "hm", "seconds": 3.5}
    assert ann.send(**sent).json() == {"judgement": 1, "new": True}
    assert ann.send(**sent).json() == {"judgement": 1, "new": False}
    assert ann.send(**{**sent, "submission": "another-tab"}).status_code == 409
    page = ann.get("/rank")
    assert task_of(page)["task"] != data["task"]
    assert ann.post("/rank/undo", judgement=1).headers["location"] == "/rank"
    back = ann.get("/rank")
    assert task_of(back)["task"] == data["task"]
    assert task_of(back)["ranks"] == {"a": 1, "b": 2, "c": 2}
    assert ">hm</textarea>" in back.text
    assert not exchange.judgements(database, 1)


def test_answers_are_in_an_order_of_each_annotators_own(tmp_path):
    database = annotated(tmp_path, 1, people=" ".join("abcdefgh"), each=8, answers=4)
    orders = {"".join(task_of(Person(database, name).get("/rank"))["keys"].values()) for name in "abcdefgh"}
    assert len(orders) > 2


def test_two_answers_are_a_choice_between_them(tmp_path):
    ann = Person(annotated(tmp_path, 1, answers=2), "ann")
    page = ann.get("/rank")
    assert "is better" in page.text
    assert "Both bad" in page.text
    assert 'data-rank="1"' not in page.text


def test_skipping_and_all_bad(tmp_path):
    database = annotated(tmp_path, 2)
    ann = Person(database, "ann")
    task = task_of(ann.get("/rank"))["task"]
    assert "needs a reason" in ann.send(task=task, submission="12345678", kind="skip").json()["detail"]
    assert ann.send(task=task, submission="12345678", kind="skip", reason="broken").status_code == 200
    task = task_of(ann.get("/rank"))["task"]
    assert ann.send(task=task, submission="87654321", all_bad=True).status_code == 200
    assert "nothing is left to rank" in ann.get("/rank").text
    assert [(one.kind, one.all_bad, one.reason) for one in exchange.judgements(database, 1)] == [
        ("skip", False, "broken"),
        ("ranking", True, None),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": {"a": 1, "b": 2}},
        {"ranks": {"a": 1, "b": 2, "c": "3"}},
        {"ranks": {"a": 1, "b": 2, "c": 2.5}},
        {"ranks": {"a": 1, "b": 2, "c": True}},
        {"ranks": {"a": 1, "b": 2, "z": 3}},
        {"ranks": RANKS, "submission": "short"},
        {"ranks": RANKS, "comment": "x" * 5000},
        {"ranks": RANKS, "annotator": "ben"},
        {"ranks": RANKS, "kind": "vote"},
    ],
)
def test_what_is_not_whole_is_refused(tmp_path, wrong):
    database = annotated(tmp_path, 1, people="ann", each=1)
    ann = Person(database, "ann")
    task = task_of(ann.get("/rank"))["task"]
    answer = ann.send(**{"task": task, "submission": "0123456789", **wrong})
    assert answer.status_code == 422
    assert answer.json()["detail"]
    assert not exchange.judgements(database, 1)
