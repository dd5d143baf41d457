"""Rankings as Label Studio and Argilla export them."""

import json

import pytest

from rlhf_lib.data.rankings.exports import is_export, read_export
from rlhf_lib.errors import DataError

ITEMS = [
    {"id": "x", "title": "one", "body": "A robin."},
    {"id": "y", "title": "A trout."},
    {"id": "z", "body": "A wren."},
]
FIELDS = {"prompt": "Name a bird.", "reply-1": "A robin.", "reply-2": "A trout.", "reply-3": "A wren."}


def write(path, *records) -> str:
    path.write_text(json.dumps(records))
    return str(path)


def studio(*results, by=1, **data) -> dict:
    annotation = {"completed_by": by, "result": list(results), "was_cancelled": False}
    return {"id": 1, "data": data or {"prompt": "Name a bird.", "items": ITEMS}, "annotations": [annotation]}


def ranker(value) -> dict:
    return {"type": "ranker", "from_name": "rank", "to_name": "items", "value": {"ranker": value}}


def read(path, *records):
    return read_export(write(path / "export.json", *records))


def test_label_studios_ranker_plain_by_name_and_in_buckets(tmp_path):
    found, rejected = read(
        tmp_path,
        studio(ranker({"rank": ["x", "z", "y"]}), by={"id": 5, "email": "ann@example.org"}),
        studio(ranker(["x", "z", "y"])),
        studio(ranker({"_": ["x", "y", "z"], "good": ["x", "z"], "bad": ["y"]})),
    )
    assert rejected == []
    assert [one.ranks for one in found] == [{"x": 1, "z": 2, "y": 3}] * 2 + [{"x": 1, "z": 1, "y": 2}]
    assert [one.annotator for one in found] == ["ann@example.org", "1", "1"]
    assert found[0].task.prompt == "Name a bird."
    assert found[0].task.responses == {"x": "A robin.", "y": "A trout.", "z": "A wren."}
    assert found[0].task.id == found[1].task.id


@pytest.mark.parametrize(("selected", "ranks"), [("left", (1, 2)), ("right", (2, 1)), (None, (1, 1))])
def test_label_studios_pair(tmp_path, selected, ranks):
    pair = {"type": "pairwise", "to_name": "text1,text2", "value": {"selected": selected} if selected else {}}
    ((found,), _) = read(tmp_path, studio(pair, prompt="Name a bird.", text1="A robin.", text2="A trout."))
    assert found.ranks == {"left": ranks[0], "right": ranks[1]}
    assert found.task.responses == {"left": "A robin.", "right": "A trout."}


def test_argilla_of_both_versions(tmp_path):
    tied = [{"rank": 1, "value": "reply-1"}, {"rank": 1, "value": "reply-3"}, {"rank": 2, "value": "reply-2"}]
    first = {
        "user_id": "u1",
        "status": "submitted",
        "values": {"preference": {"value": tied}, "why": {"value": "text"}},
    }
    draft = first | {"user_id": "u2", "status": "draft"}
    second = {"preference": [{"user_id": "u3", "value": ["reply-3", "reply-1", "reply-2"]}], "why": [{"value": "text"}]}
    found, rejected = read(
        tmp_path, {"fields": FIELDS, "responses": [first, draft]}, {"fields": FIELDS, "responses": second}
    )
    assert rejected == []
    assert [(one.annotator, one.ranks) for one in found] == [
        ("u1", {"reply-1": 1, "reply-3": 1, "reply-2": 2}),
        ("u3", {"reply-3": 1, "reply-1": 2, "reply-2": 3}),
    ]
    assert found[0].task.responses == {name: FIELDS[name] for name in ("reply-1", "reply-2", "reply-3")}


def test_records_that_cannot_be_used_are_named(tmp_path):
    good = studio(ranker({"rank": ["x", "z", "y"]}))
    _, rejected = read(
        tmp_path,
        good,
        studio(ranker({"rank": ["x", "z"]})),
        studio(ranker({"rank": ["x", "z", "q"]})),
        studio({"type": "choices", "value": {"choices": ["a"]}}),
        studio(ranker({"rank": ["x"]}), prompt="Name a bird.", items="none"),
        studio(ranker({"rank": ["x", "z", "y"]}), items=ITEMS),
        {"fields": FIELDS, "responses": {"preference": [{"value": ["reply-1", "reply-9"]}]}},
        {"other": 1},
        3,
    )
    assert [(row.line, row.reason) for row in rejected] == [
        (2, "missing responses"),
        (3, "unknown response"),
        (4, "missing field"),
        (5, "missing field"),
        (6, "missing field"),
        (7, "unknown response"),
        (8, "malformed"),
        (9, "malformed"),
    ]


def test_other_files_are_no_exports(tmp_path):
    ours = tmp_path / "rankings.jsonl"
    ours.write_text('{"id": "t1", "annotator": "ann", "ranks": {"a": 1, "b": 2}}\n')
    assert not is_export(str(ours))
    assert not is_export(str(tmp_path / "none.json"))
    assert is_export(write(tmp_path / "export.json", studio()))
    with pytest.raises(DataError, match=r"no ranking of .*: malformed"):
        read_export(str(ours))
    with pytest.raises(DataError, match="can't be read"):
        read_export(str(tmp_path / "none.json"))
    ours.write_text("id,annotator\n")
    with pytest.raises(DataError, match="neither JSON nor JSONL"):
        read_export(str(ours))
