"""Who gets which task: K people each, even overlaps, leases that run out."""

from collections import Counter
from itertools import combinations

import pytest
from annotated import annotated

from tasks.annotation import accounts, exchange, store
from tasks.annotation.handout import choose, next_task, progress
from tasks.annotation.store import Said

RANKS = {"a": 1, "b": 2, "c": 3}


def people(database) -> dict[str, int]:
    return {one.name: one.id for one in accounts.listed(database)}


def test_a_begun_task_comes_first_and_a_full_one_never():
    assert choose([1, 2, 3], {2: {8}, 3: {8, 9}}, set(), 7, 2) == [2, 1]
    assert choose([1, 2, 3], {}, {1}, 7, 2) == [2, 3]  # had it already


def test_a_new_task_is_begun_before_two_share_more_than_others_do():
    holders = {1: {7, 8}, 2: {8}, 3: {9}}
    assert choose([1, 2, 3, 4], holders, set(), 7, 2) == [3, 4, 2]  # 7 shares one with 8 and none with 9


@pytest.mark.parametrize(("names", "each"), [("a b c d", 2), ("a b c", 2), ("a b c d e", 3)])
def test_overlaps_are_even_if_people_work_at_the_same_pace(tmp_path, names, each):
    tasks = 20
    database = annotated(tmp_path, tasks, people=names, each=each)
    ids, working = people(database), names.split()
    while working:
        for name in list(working):
            handed = next_task(database, ids[name])
            if handed is None:
                working.remove(name)
            else:
                store.submit(database, ids[name], handed.task.id, f"{name}{handed.task.id}", Said(ranks=RANKS))
    by_task: dict[str, set[str]] = {}
    for one in exchange.judgements(database, 1):
        by_task.setdefault(one.task.key, set()).add(one.account.name)
    assert {len(who) for who in by_task.values()} == {each}
    assert len(by_task) == tasks
    shared = Counter(pair for who in by_task.values() for pair in combinations(sorted(who), 2))
    assert len(shared) == len(list(combinations(names.split(), 2)))
    assert max(shared.values()) - min(shared.values()) <= 3


def test_a_lease_that_ran_out_goes_to_the_next_and_a_late_ranking_is_still_taken(tmp_path):
    database = annotated(tmp_path, 1, each=1)
    ids = people(database)
    held = next_task(database, ids["ann"], now=1000.0).task
    assert next_task(database, ids["ann"], now=1001.0).task.id == held.id  # another tab, or tomorrow
    assert next_task(database, ids["ben"], now=1001.0 + store.LEASE - 1) is None
    later = 1001.0 + store.LEASE
    assert next_task(database, ids["ben"], now=later).task.id == held.id
    assert next_task(database, ids["ann"], now=later) is None  # ben has it now
    store.submit(database, ids["ben"], held.id, "s1", Said(ranks=RANKS))
    store.submit(database, ids["ann"], held.id, "s2", Said(ranks=RANKS))
    assert len(exchange.judgements(database, 1)) == 2


def test_what_was_left_is_shown_again_even_after_the_lease_if_nobody_took_it(tmp_path):
    database = annotated(tmp_path, 3)
    ann = people(database)["ann"]
    first = next_task(database, ann, now=1000.0)
    again = next_task(database, ann, now=1000.0 + 86400)
    assert again.task.id == first.task.id
    assert [one.key for one in again.answers] == [one.key for one in first.answers]


def test_a_skipped_task_is_for_somebody_else(tmp_path):
    database = annotated(tmp_path, 1, people="ann ben cyd", each=2)
    ids = people(database)
    task = next_task(database, ids["ann"]).task.id
    store.submit(database, ids["ann"], task, "s1", Said(kind="skip", reason="broken"))
    assert next_task(database, ids["ann"]) is None
    for name in ("ben", "cyd"):
        assert next_task(database, ids[name]).task.id == task
        store.submit(database, ids[name], task, name, Said(ranks=RANKS))


def test_progress_counts_what_is_still_for_this_annotator(tmp_path):
    database = annotated(tmp_path, 4, each=1)
    ids = people(database)
    assert (progress(database, ids["ann"]).judged, progress(database, ids["ann"]).left) == (0, 4)
    store.submit(database, ids["ann"], next_task(database, ids["ann"]).task.id, "s1", Said(ranks=RANKS))
    next_task(database, ids["ben"])
    found = progress(database, ids["ann"])
    assert (found.judged, found.left) == (1, 2)  # one is ben's, for now
    store.set_closed(database, 1, True)
    assert next_task(database, ids["ann"]) is None
    assert progress(database, ids["ann"]).left == 0
