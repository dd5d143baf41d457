"""Rankings, tasks and thumbs as files: what is read, and every row that is rejected, with its line and reason."""

import json

import pytest

from rlhf_lib.data.rankings.files import read_feedback, read_rankings, read_tasks, task_id
from rlhf_lib.errors import DataError

ONE = {"id": "one", "prompt": "Which?", "responses": [{"id": i, "text": f"text {i}"} for i in "abc"]}
TWO = {"id": 2, "prompt": "\n\nHuman: Why?\n\nAssistant:", "responses": [{"id": i, "text": i} for i in "ab"]}


def write(path, *rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def tasks(tmp_path):
    return read_tasks([write(tmp_path / "tasks.jsonl", ONE, TWO)])[0]


def faults(rejected) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in rejected]


def test_rankings_as_ranks_as_tiers_and_as_csv_are_the_same(tasks, tmp_path):
    ranks = write(tmp_path / "1.jsonl", {"id": "one", "annotator": "x", "ranks": {"a": 2, "b": 1, "c": 2}})
    tiers = write(tmp_path / "2.jsonl", {"id": "one", "annotator": "y", "ranking": ["b", ["a", "c"]]})
    table = write(tmp_path / "3.csv", "id,annotator,response,rank,text", "one,z,c,2,cc", "one,z,a,2,aa", "one,z,b,1,bb")
    found, rejected = read_rankings([ranks, tiers, table], tasks)
    assert rejected == []
    assert [ranking.annotator for ranking in found] == ["x", "y", "z"]
    assert {tuple(sorted(ranking.ranks.items())) for ranking in found} == {(("a", 2.0), ("b", 1.0), ("c", 2.0))}
    assert found[0].task is tasks["one"]


def test_each_bad_row_of_json_is_named_and_the_good_ones_are_kept(tasks, tmp_path):
    good = {"id": "one", "annotator": "x", "ranks": {"a": 1, "b": 2, "c": 3}}
    file = write(
        tmp_path / "rankings.jsonl",
        good,
        good | {"id": "three", "annotator": "y"},
        '{"id": "one", "annotator": "y", "ranks": {"a": 1, "b": 2, "a": 3, "c": 1}}',
        "",
        good | {"annotator": "y", "ranking": [["a"], ["b", "a"], ["c"]], "ranks": None},
        good | {"annotator": "y", "ranks": {"a": 1, "b": 2}},
        good | {"annotator": "y", "ranks": {"a": 1, "b": 2, "d": 2}},
        good | {"annotator": "y", "ranks": {"a": 1, "b": 2, "c": "best"}},
        good | {"annotator": "y", "ranks": {"a": 1, "b": 2, "c": True}},
        good | {"annotator": "y", "ranks": {"a": 1, "b": 2, "c": None}},
        good | {"ranks": {"a": 3, "b": 2, "c": 1}},
        {"id": "one", "ranks": good["ranks"]},
        {"id": "one", "annotator": "y"},
        "not JSON",
        "[1]",
        {"id": 2, "annotator": 7, "ranks": {"a": 1, "b": 2}},
        good | {"annotator": "y", "ranks": [1, 2, 3]},
    )
    found, rejected = read_rankings([file], tasks)
    assert [(ranking.task.id, ranking.annotator) for ranking in found] == [("one", "x"), ("2", "7")]
    assert faults(rejected) == [
        (2, "unknown id"),
        (3, "duplicate ranks"),
        (5, "duplicate ranks"),
        (6, "missing responses"),
        (7, "unknown response"),
        (8, "bad rank"),
        (9, "bad rank"),
        (10, "missing responses"),
        (11, "annotator twice"),
        (12, "missing field"),
        (13, "missing field"),
        (14, "malformed"),
        (15, "malformed"),
        (17, "missing field"),
    ]
    assert str(rejected[0]) == f"{file}, line 2: unknown id: no task has the id three"
    assert rejected[8].detail == f"x ranked task one in {file}, line 1 already, which stands"


def test_each_bad_ranking_of_a_table_is_named_by_the_line_at_fault(tasks, tmp_path):
    file = write(
        tmp_path / "rankings.csv",
        "id,annotator,response,rank,note",
        "2,x,a,1,",
        '2,x,b,2,"a note',
        'of two lines"',
        "2,y,a,1,",
        "2,y,a,2,",
        "2,y,b,2,",
        "2,z,a,1,",
        "three,x,a,1,",
        "2,w,a,1,",
        "2,w,b,,",
        "2,v,a,1,",
        "2,v,b,2,",
        "2,v,a,2,",
        "2,v,b,1,",
        "2,u,a,1",
        "2,t,a,1,",
        "2,t,q,2,",
        ",,,,",
        "one,,a,1,",
    )
    found, rejected = read_rankings([file], tasks)
    assert [(ranking.annotator, ranking.ranks) for ranking in found] == [
        ("x", {"a": 1, "b": 2}),
        ("v", {"a": 1, "b": 2}),
    ]
    assert sorted(faults(rejected)) == [
        (6, "duplicate ranks"),
        (8, "missing responses"),
        (9, "unknown id"),
        (11, "missing responses"),
        (14, "annotator twice"),
        (16, "malformed"),
        (18, "unknown response"),
        (20, "missing field"),
    ]
    by_line = {row.line: row.detail for row in rejected}
    assert by_line[6] == "response a of task 2 has more than one rank (its lines: 5, 6, 7)"


def test_an_annotator_twice_is_found_across_files(tasks, tmp_path):
    row = {"id": 2, "annotator": "x", "ranks": {"a": 1, "b": 2}}
    first, second = write(tmp_path / "1.jsonl", row), write(tmp_path / "2.csv", "id;annotator;response;rank")
    with open(second, "a", encoding="utf-8") as table:
        table.write("2;x;a;1\n2;x;b;2\n")
    found, rejected = read_rankings([first, second], tasks)
    assert len(found) == 1
    assert [(row.file, row.line, row.reason) for row in rejected] == [(second, 2, "annotator twice")]


def test_tasks_join_by_id_and_bad_ones_are_named(tmp_path):
    first = write(tmp_path / "1.jsonl", ONE)
    second = write(
        tmp_path / "2.jsonl",
        ONE,
        ONE | {"prompt": "Another?"},
        TWO | {"responses": TWO["responses"][:1]},
        TWO | {"responses": [{"id": "a", "text": "x"}] * 2},
        TWO | {"prompt": " "},
        TWO | {"responses": ["a", "b"]},
        TWO | {"responses": [{"id": "a"}, {"id": "b"}]},
        TWO | {"criterion": "honest", "policy": "models:/x/3"},
    )
    found, rejected = read_tasks([first, second])
    assert list(found) == ["one", "2"]
    assert found["2"].criterion == "honest"
    assert faults(rejected) == [
        (2, "repeated id"),
        (3, "too few responses"),
        (4, "repeated response id"),
        (5, "missing field"),
        (6, "malformed"),
        (7, "malformed"),
    ]


def test_a_tasks_id_is_of_what_is_judged():
    assert task_id("p", ["x", "y"]) == task_id("p", ["x", "y"])
    ids = [task_id("p", ["x", "y"]), task_id("p", ["y", "x"]), task_id("p", ["x", "y"], "honest"), task_id("q", ["x"])]
    assert len(set(ids)) == 4


def test_thumbs_in_every_spelling_and_the_bad_ones_named(tmp_path):
    thumbs = ["up", 1, True, "down", -1, False]
    rows = [{"prompt": "p", "response": f"r{i}", "thumb": thumb} for i, thumb in enumerate(thumbs)]
    bad = [
        {"prompt": "p", "response": "r0", "thumb": 0},
        {"prompt": "p", "thumb": "up"},
        {"prompt": "p", "response": "r0", "thumb": "up", "annotator": "x", "criterion": "honest"},
        {"prompt": "p", "response": "r0", "thumb": "down", "annotator": "x", "criterion": "honest"},
    ]
    file = write(tmp_path / "thumbs.jsonl", *rows, *bad)
    table = write(tmp_path / "thumbs.csv", "prompt,response,thumb", '"p, q",r9,Up')
    found, rejected = read_feedback([file, table])
    assert [thumb.up for thumb in found] == [True] * 3 + [False] * 3 + [True, True]
    assert (found[6].annotator, found[6].criterion, found[7].prompt) == ("x", "honest", "p, q")
    assert faults(rejected) == [(7, "bad thumb"), (8, "missing field"), (10, "annotator twice")]


def test_files_that_cannot_be_used_say_what_is_wrong(tasks, tmp_path):
    def refused(match, *files):
        with pytest.raises(DataError, match=match):
            read_rankings(files, tasks)

    refused(r"rankings: .*none\.jsonl can't be read", str(tmp_path / "none.jsonl"))
    refused(r"x\.txt has an unknown format \(known: \.jsonl", write(tmp_path / "x.txt", ""))
    refused(r"column annotator not found in .*available: id, rank; expected", write(tmp_path / "x.csv", "id,rank"))
    refused(r"column id not found in .*available: none; expected", write(tmp_path / "empty.csv"))
    refused(
        r"no ranking of .* can be used \(1 rejected\).*line 1: unknown id",
        write(tmp_path / "y.jsonl", {"id": "q", "annotator": "x", "ranks": {}}),
    )
    (tmp_path / "latin.csv").write_bytes("id,annotator,response,rank\n2,Zoë,a,1\n".encode("latin-1"))
    refused(r"latin\.csv is not UTF-8", str(tmp_path / "latin.csv"))
