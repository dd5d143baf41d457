"""Rounds come from the files of `rlhf collect` and go back to files that `rlhf rankings` reads."""

import json

import pytest
from annotated import annotated

from rlhf_lib.data.rankings import consensus
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import RankingsConfig
from tasks.annotation import accounts, exchange, handout, overview, store
from tasks.annotation.database import Database, sqlite_url
from tasks.annotation.store import Said


def write(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rank_all(database, name: str, ranks) -> None:
    me = next(one.id for one in accounts.listed(database) if one.name == name)
    while (handed := handout.next_task(database, me)) is not None:
        store.submit(database, me, handed.task.id, f"{name}{handed.task.id}", Said(ranks=ranks, seconds=4.0))


def test_tasks_go_in_and_out_unchanged(tmp_path):
    two = [{"id": "a", "text": "Só."}, {"id": "b", "text": "Ü"}]
    named = [{"id": "a", "text": "x", "policy": "one"}, {"id": "b", "text": "y"}]
    how = {"criterion": "helpful", "instructions": "Rank *them*.", "policy": "models:/m/3"}
    rows = [
        {"id": "t1", "prompt": "\n\nHuman: Wie?\n\nAssistant:", "responses": two, **how},
        {"id": "7", "prompt": "Which?", "responses": named},
    ]
    tasks, rejected = exchange.read_tasks([write(tmp_path / "tasks.jsonl", *rows, {"id": "bad"})])
    assert [row.line for row in rejected] == [3]
    database = Database(sqlite_url(tmp_path / "annotation.db"))
    of, _ = store.open_round(database, "r", tasks, annotators=1)
    assert list(exchange.task_rows(database, of.id)) == rows


def test_the_export_trains_and_comes_back(tmp_path):
    database = annotated(tmp_path, 3, people="ann ben cyd", each=3)
    rank_all(database, "ann", {"a": 1, "b": 2, "c": 3})
    rank_all(database, "ben", {"a": 1, "b": 2, "c": 3})
    rank_all(database, "cyd", {"a": 1, "b": 3, "c": 2})
    written = exchange.export(database, 1, tmp_path / "out")
    files = {"tasks": [str(written["tasks"])], "rankings": [str(written["rankings"])]}
    found = consensus.gather(RankingsConfig.model_validate(files))
    assert found.rejected == []
    assert found.criterion == "helpful"
    # a before b and a before c, of all three; b before c by two votes to one
    assert sorted((pair.chosen[7], pair.rejected[7], round(pair.margin, 3)) for pair in found.pairs) == sorted(
        [("a", "b", 1.0), ("a", "c", 1.0), ("b", "c", 0.333)] * 3
    )
    view = overview.overview(database, 1)
    assert view.alpha == pytest.approx(found.alpha)
    assert {one.name: one.alpha for one in view.annotators} == {n: m["alpha"] for n, m in found.annotators.items()}
    assert (view.seconds, view.depth, view.row.rankings, view.row.wanted) == (4.0, {3: 3}, 9, 9)

    other = annotated(tmp_path / "other", 3, people="ann", each=3)
    taken = exchange.bring_rankings(other, 1, files["rankings"])
    assert (taken.new, taken.known, taken.rejected) == (9, 0, [])
    assert exchange.bring_rankings(other, 1, files["rankings"]).known == 9
    assert [row["ranks"] for row in exchange.ranking_rows(other, 1)] == [
        row["ranks"] for row in exchange.ranking_rows(database, 1)
    ]


def test_an_annotator_at_odds_with_the_others_is_flagged(tmp_path):
    database = annotated(tmp_path, 6, people="ann ben cyd", each=3)
    for name, ranks in (("ann", (1, 2, 3)), ("ben", (1, 2, 3)), ("cyd", (3, 2, 1))):
        rank_all(database, name, dict(zip("abc", ranks, strict=True)))
    view = overview.overview(database, 1)
    assert [one.name for one in view.annotators if one.flagged] == ["cyd"]
    assert overview.overview(database, 99) is None


def test_rankings_in_csv_and_bad_rows(tmp_path):
    database = annotated(tmp_path, 2)
    file = tmp_path / "filled.csv"
    file.write_text("id,annotator,response,rank\nt0,zoe,a,2\nt0,zoe,b,1\nt0,zoe,c,2\nt1,zoe,a,1\n")
    taken = exchange.bring_rankings(database, 1, [str(file)])
    assert (taken.new, [row.reason for row in taken.rejected]) == (1, ["missing responses"])
    assert next(exchange.ranking_rows(database, 1))["ranks"] == {"a": 2, "b": 1, "c": 2}
    assert accounts.by_password(database, "zoe", "") is None
    file.write_text("id,annotator,response,rank\n")
    with pytest.raises(DataError, match="no ranking of"):
        exchange.bring_rankings(database, 1, [str(file)])


def test_an_export_of_another_tool_becomes_a_closed_round(tmp_path):
    items = [{"id": "x", "title": "1", "body": "A robin."}, {"id": "y", "title": "2", "body": "A trout."}]
    result = {"type": "ranker", "from_name": "rank", "value": {"ranker": {"rank": ["x", "y"]}}}
    record = {
        "data": {"prompt": "Name a bird.", "items": items},
        "annotations": [{"completed_by": 3, "result": [result]}],
    }
    file = tmp_path / "export.json"
    file.write_text(json.dumps([record]))
    database = annotated(tmp_path, 1)
    of, taken = exchange.bring_export(database, "birds", str(file))
    assert (of.handed_out, taken.new) == (False, 1)
    assert exchange.bring_export(database, "birds", str(file))[1].known == 1
    assert [row["ranks"] for row in exchange.ranking_rows(database, of.id)] == [{"x": 1, "y": 2}]
