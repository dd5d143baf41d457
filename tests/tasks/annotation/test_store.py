"""Rankings are kept whole, once, and can be undone; votes become rankings of two."""

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from annotated import annotated, new_tasks
from postgres import postgres

from rlhf_lib.conversation import Conversation, user
from rlhf_lib.errors import DataError, EnvironmentFault
from tasks.annotation import accounts, exchange, handout, overview, store
from tasks.annotation.database import Database
from tasks.annotation.models import Answer, Task
from tasks.annotation.store import Conflict, Said

ROOT = Path(__file__).parents[3]
RANKS = {"a": 1, "b": 2, "c": 2}


def account(database: Database, name: str) -> int:
    return next(one.id for one in accounts.listed(database) if one.name == name)


def test_a_ranking_is_kept_and_the_same_submission_counts_once(tmp_path):
    database = annotated(tmp_path)
    ann = account(database, "ann")
    task = handout.next_task(database, ann).task
    first, new = store.submit(database, ann, task.id, "s1", Said(ranks={"a": 2, "b": 5, "c": 5}, comment=" good "))
    again, newer = store.submit(database, ann, task.id, "s1", Said(ranks={"a": 3, "b": 1, "c": 2}))
    assert (new, newer, again.id) == (True, False, first.id)
    assert first.ranks == again.ranks == RANKS  # dense, and the first one stands
    assert first.comment == "good"
    assert set(first.shown) == set(RANKS)
    with pytest.raises(Conflict, match="judged this one already"):  # another tab
        store.submit(database, ann, task.id, "s2", Said(ranks=RANKS))
    with pytest.raises(Conflict, match="another task"):
        store.submit(database, ann, task.id + 1, "s1", Said(ranks=RANKS))
    assert len(exchange.judgements(database, 1)) == 1


def test_what_is_not_whole_is_refused_and_leaves_nothing(tmp_path):
    database = annotated(tmp_path)
    ann, ben = account(database, "ann"), account(database, "ben")
    task = handout.next_task(database, ann).task
    for said, why in (
        (Said(ranks={"a": 1, "b": 2}), "1 of 3 have none"),
        (Said(ranks={**RANKS, "z": 1}), "no answer 'z'"),
        (Said(ranks={**RANKS, "a": 0}), "from 1 on"),
        (Said(), "3 of 3 have none"),
        (Said(kind="skip"), "needs a reason"),
        (Said(kind="other", ranks=RANKS), "'other'"),
    ):
        with pytest.raises(DataError, match=why):
            store.submit(database, ann, task.id, "s1", said)
    with pytest.raises(Conflict, match="isn't yours"):  # never handed to ben
        store.submit(database, ben, task.id, "s1", Said(ranks=RANKS))
    assert not exchange.judgements(database, 1)
    assert handout.next_task(database, ann).task.id == task.id


def test_all_bad_is_a_tie_unless_ranked_and_a_skip_has_no_ranks(tmp_path):
    database = annotated(tmp_path)
    ann = account(database, "ann")
    said = [Said(all_bad=True), Said(all_bad=True, ranks=RANKS), Said(kind="skip", reason=" broken ", all_bad=True)]
    kept = []
    for n, one in enumerate(said):
        kept.append(store.submit(database, ann, handout.next_task(database, ann).task.id, f"s{n}", one)[0])
    assert [(one.ranks, one.all_bad, one.reason) for one in kept] == [
        ({"a": 1, "b": 1, "c": 1}, True, None),
        (RANKS, True, None),
        (None, False, "broken"),
    ]


def test_undo_gives_the_task_back_once(tmp_path):
    database = annotated(tmp_path)
    ann, ben = account(database, "ann"), account(database, "ben")
    made = []
    for n in range(2):
        task = handout.next_task(database, ann).task
        made.append(store.submit(database, ann, task.id, f"s{n}", Said(ranks=RANKS))[0])
    with pytest.raises(Conflict, match="only the last"):
        store.undo(database, ann, made[0].id)
    with pytest.raises(Conflict, match="isn't yours"):
        store.undo(database, ben, made[1].id)
    store.undo(database, ann, made[1].id)
    store.undo(database, ann, made[1].id)  # a double click
    handed = handout.next_task(database, ann)
    assert (handed.task.id, handed.before.ranks) == (made[1].task_id, RANKS)
    late, new = store.submit(database, ann, made[1].task_id, "s1", Said(ranks=RANKS))  # sent again, from a slow network
    assert (late.id, new) == (made[1].id, False)
    store.submit(database, ann, made[1].task_id, "s9", Said(ranks={"a": 3, "b": 2, "c": 1}))
    assert [one.submission for one in exchange.judgements(database, 1)] == ["s0", "s9"]


def test_a_vote_becomes_a_ranking_of_two_whatever_the_order(tmp_path):
    database = annotated(tmp_path)
    prompt = Conversation([user("Name a bird.")])
    first = store.add_vote(database, prompt, ["A trout.", "A robin."], 1, "eve", models=["old", "new"], submission="v1")
    assert store.add_vote(database, prompt, ["A trout.", "A robin."], 1, "eve", submission="v1").id == first.id
    store.add_vote(database, prompt, ["A robin.", "A trout."], None, "fay")
    store.add_vote(database, prompt, ["A robin.", "A trout."], 1, "eve")  # she thinks again
    of = next(row.id for row in overview.rounds(database) if row.name == store.VOTES)
    (task,) = exchange.task_rows(database, of)
    assert task["prompt"] == "\n\nHuman: Name a bird.\n\nAssistant:"
    assert task["responses"] == [
        {"id": "a", "text": "A robin.", "policy": "new"},
        {"id": "b", "text": "A trout.", "policy": "old"},
    ]
    assert [(one["annotator"], one["ranks"]) for one in exchange.ranking_rows(database, of)] == [
        ("fay", {"a": 1, "b": 1}),
        ("eve", {"a": 2, "b": 1}),
    ]
    assert first.shown == ["b", "a"]
    with pytest.raises(DataError, match="two different"):
        store.add_vote(database, prompt, ["Same.", "Same. "], 0, "eve")
    with pytest.raises(DataError, match="preferred is 2"):
        store.add_vote(database, prompt, ["One.", "Two."], 2, "eve")
    assert accounts.by_password(database, "eve", "") is None  # a name to keep votes under, not a login


def test_the_same_tasks_are_one_round(tmp_path):
    database = annotated(tmp_path)
    of, new = store.open_round(database, "again", new_tasks(4), annotators=3)
    assert (of.id, new, of.annotators) == (1, False, 3)
    assert store.open_round(database, "more", new_tasks(5), annotators=3)[1]
    with pytest.raises(DataError, match="at least one task"):
        store.open_round(database, "none", [], annotators=3)
    with pytest.raises(DataError, match="--annotators is 0"):
        store.open_round(database, "none", new_tasks(1), annotators=0)


def test_the_order_of_answers_is_drawn_for_each_annotator():
    task = Task(id=1, key="t", answers=[Answer(key=key, position=n) for n, key in enumerate("abcd")])
    orders = Counter("".join(one.key for one in store.shown_order(task, person)) for person in range(600))
    assert [one.key for one in store.shown_order(task, 7)] == [one.key for one in store.shown_order(task, 7)]
    assert len(orders) == 24
    assert max(orders.values()) < 60  # 25 expected of each


def test_a_database_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="can't be opened"):
        Database(f"sqlite:///{tmp_path}/file/annotation.db" if os.name == "nt" else "sqlite:////proc/annotation.db")
    with pytest.raises(EnvironmentFault, match="--database"):
        Database("annotation.db")


def post_everything(database: Database, posters: int, tasks: int) -> list[tuple[str, str]]:
    """Each poster, in a thread of its own, ranks until nothing is left, and sends everything twice."""
    barrier = threading.Barrier(posters)

    def work(number: int) -> list[tuple[str, str]]:
        me, acknowledged = account(database, f"p{number}"), []
        barrier.wait()
        while (handed := handout.next_task(database, me)) is not None:
            submission = f"{number}-{len(acknowledged)}"
            for _ in range(2):
                store.submit(database, me, handed.task.id, submission, Said(ranks=RANKS))
            acknowledged.append((submission, handed.task.key))
        return acknowledged

    with ThreadPoolExecutor(posters) as pool:
        return [one for done in pool.map(work, range(posters)) for one in done]


def check_posted(database: Database, tasks: int, each: int, acknowledged: list[tuple[str, str]]) -> None:
    kept = exchange.judgements(database, 1)
    assert sorted((one.submission, one.task.key) for one in kept) == sorted(acknowledged)
    assert Counter(one.task.key for one in kept) == {f"t{n}": each for n in range(tasks)}


def race_two_tabs(database: Database) -> None:
    """One annotator's two tabs at the same moment, over and over: one loads a page while the other submits."""
    of, _ = store.open_round(database, "race", new_tasks(20, answers=2), annotators=1)
    accounts.add(database, "racer")
    racer = account(database, "racer")

    def tab(name: str) -> int:
        new = 0
        while (handed := handout.next_task(database, racer)) is not None:
            with suppress(Conflict):
                new += store.submit(
                    database, racer, handed.task.id, f"{name}{handed.task.id}", Said(ranks={"a": 1, "b": 1})
                )[1]
        return new

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(tab, ("one", "two"))) == 20
    assert len(exchange.judgements(database, of.id)) == 20
    store.set_closed(database, of.id, True)


def test_two_tabs_of_one_annotator_judge_each_task_once(tmp_path):
    database = annotated(tmp_path, 1)
    store.set_closed(database, 1, True)
    race_two_tabs(database)


def test_eight_at_once_get_each_task_to_three_people(tmp_path):
    database = annotated(tmp_path, 12, people=" ".join(f"p{n}" for n in range(8)), each=3)
    check_posted(database, 12, 3, post_everything(database, 8, 12))


def test_eight_at_once_on_postgresql(tmp_path):
    with postgres(tmp_path) as server:
        server.sql("CREATE DATABASE annotation")
        database = Database(f"postgresql://postgres:{server.password}@127.0.0.1:{server.port}/annotation")
        for n in range(8):
            accounts.add(database, f"p{n}")
        store.open_round(database, "round", new_tasks(12), annotators=3)
        check_posted(database, 12, 3, post_everything(database, 8, 12))
        race_two_tabs(database)
        store.add_vote(database, "Name a bird.", ["A trout.", "A robin."], 1, "eve", submission="v1")
        last = next(one for one in exchange.judgements(database, 1))
        store.undo(database, last.account_id, [
            one.id for one in exchange.judgements(database, 1) if one.account_id == last.account_id
        ][-1])  # fmt: skip
        assert overview.rounds(database)[0].rankings == 35
        database.close()
