"""Agreement, consensus and the pairs that come of them, against values worked out by hand."""

import json
import math

import numpy as np
import pytest

from rlhf_lib.data.preferences import load_preferences
from rlhf_lib.data.rankings.consensus import (
    agreement_matrix,
    alpha,
    annotator_agreement,
    flagged,
    gather,
    judgements,
    majority,
    ranked_pairs,
    thumb_pairs,
)
from rlhf_lib.data.rankings.files import Ranking, Task, Thumb
from rlhf_lib.errors import DataError, RecipeError
from rlhf_lib.recipe import RankingsConfig, Recipe, load_recipe

NAN = float("nan")
ABC = Task("t", "p", {"a": "A", "b": "B", "c": "C"})


def ranking(annotator, ranks: str, task=ABC) -> Ranking:
    """`ranks` of a, b, c, ... as digits."""
    return Ranking(task, annotator, {i: float(r) for i, r in zip(task.responses, ranks, strict=True)}, "")


# ---- agreement


def test_a_ranking_is_a_judgement_of_each_pair():
    names, values = judgements([ranking("y", "122"), ranking("x", "321")])
    assert names == ["x", "y"]
    assert values.tolist() == [[-1, -1, -1], [1, 1, 0]]  # ab, ac, bc


def test_alpha_by_hand():
    # Both orders of two pairs: (1 1)(-1 -1)(1 -1)(-1 1). n = 8 values, 4 of each, two coincidences of unlike ones:
    # 1 - (n - 1) o / (n1 n2) = 1 - 7 * 2 / 16.
    assert alpha(np.array([[1, 1], [1, -1]])) == pytest.approx(1 / 8)
    # A third pair judged 1 and 0: n = 12 with 5, 2 and 5 of -1, 0 and 1. Ordinal distances: 3.5^2 from 0 to either,
    # 7^2 from -1 to 1. Observed 2 * 49 + 2 * 12.25 = 122.5, expected 25 * 49 + 2 * 10 * 12.25 = 1470.
    assert alpha(np.array([[1, 1, 1], [1, -1, 0]])) == pytest.approx(1 - 11 * 122.5 / 1470)


def test_alpha_knows_no_order_of_listing_and_leaves_out_what_one_alone_judged():
    values = np.array([[1.0, 1, 0, -1, NAN], [1, -1, 0, -1, 1], [1, 1, 1, NAN, NAN]])
    assert alpha(values * np.array([1, -1, 1, -1, -1])) == pytest.approx(alpha(values))
    assert alpha(values[:, :4]) == pytest.approx(alpha(values))
    assert alpha(np.array([[1.0, 1], [1, 1]])) == 1.0  # unanimous, and all first: still full agreement
    assert alpha(np.array([[1.0, NAN], [NAN, 1]])) is None
    assert alpha(np.zeros((2, 3))) is None


def test_each_annotator_against_the_others():
    values = np.array([[1.0, 1, 1, 1], [1, 1, 0, NAN], [-1, -1, -1, -1]])
    assert majority(values[:2]).tolist() == [1, 1, 1, 1]
    assert np.isnan(majority(np.array([[1.0, NAN], [-1, NAN]]))).all()  # divided, not judged
    assert majority(np.array([[0.0, 0, 1], [0, -1, 1], [NAN, NAN, -1]])).tolist() == [0, -1, 1]
    found = annotator_agreement(["x", "y", "z"], values)
    assert found["x"]["agreement"] == pytest.approx(2 / 7)  # of 3 pairs with y and 4 with z
    assert found["y"]["agreement"] == pytest.approx(2 / 6)
    assert found["z"]["agreement"] == 0
    assert (found["y"]["pairs"], found["y"]["ties"]) == (3, pytest.approx(1 / 3))
    # x and y hold 1, 1, 1, 1 against z: the both-orders values of z and of the others' majority are all unlike:
    # n = 16, 8 of each, 8 coincidences: 1 - 15 * 8 / 64
    assert found["z"]["alpha"] == pytest.approx(1 - 15 * 8 / 64)
    assert found["x"]["alpha"] == pytest.approx(1 - 7 * 4 / 16)  # two pairs where y and z aren't divided, both unlike
    assert found["y"]["alpha"] is None
    assert flagged(found, 0.0) == ["x", "z"]
    assert agreement_matrix(values) == [[1, pytest.approx(2 / 3), 0], [pytest.approx(2 / 3), 1, 0], [0, 0, 1]]


# ---- consensus


def pairs_of(rankings, consensus) -> set:
    found, ties = ranked_pairs(rankings, consensus)
    return {(p.chosen + ">" + p.rejected, round(p.margin, 4)) for p in found} | ({("ties", ties)} if ties else set())


def test_one_ranking_is_all_its_pairs_with_the_preferred_first():
    four = Task("t", "p", {i: i.upper() for i in "abcd"})
    assert pairs_of([ranking("x", "2143", four)], "majority") == {
        (pair, 1.0) for pair in ("B>A", "A>D", "A>C", "B>D", "B>C", "D>C")
    }
    assert pairs_of([ranking("x", "122")], "majority") == {("A>B", 1.0), ("A>C", 1.0), ("ties", 1)}


def test_majority_with_ties():
    votes = [ranking("x", "123"), ranking("y", "213"), ranking("z", "112")]
    # ab: +1 -1 0, a tie; ac and bc: all for c's being worst
    assert pairs_of(votes, "majority") == {("A>C", 1.0), ("B>C", 1.0), ("ties", 1)}
    assert pairs_of([*votes, ranking("w", "132")], "majority") == {("A>B", 0.25), ("A>C", 1.0), ("B>C", 0.5)}


def test_without_a_consensus_every_annotators_pairs():
    found, ties = ranked_pairs([ranking("x", "123"), ranking("y", "213"), ranking("z", "112")], "none")
    assert ties == 1
    assert sorted(p.chosen + p.rejected for p in found) == ["AB", "AC", "AC", "AC", "BA", "BC", "BC", "BC"]


def test_bradley_terry_of_two_by_hand():
    """Three votes to one, strengths +-d/2: 3 s(-d) - s(d) = PRIOR d / 2, from the log-likelihood's derivative."""
    two = Task("t", "p", {"a": "A", "b": "B"})
    votes = [ranking(str(i), "12", two) for i in range(3)] + [ranking("3", "21", two)]
    [pair], ties = ranked_pairs(votes, "bradley_terry")
    low, high = 0.0, 5.0
    for _ in range(60):
        d = (low + high) / 2
        low, high = (d, high) if 3 / (1 + math.exp(d)) - 1 / (1 + math.exp(-d)) > 0.1 * d / 2 else (low, d)
    assert (pair.chosen, ties) == ("A", 0)
    assert pair.margin == pytest.approx(d, abs=1e-4)
    assert 0.9 < d < math.log(3)  # the prior draws it in a little
    assert ranked_pairs([ranking("x", "12", two), ranking("y", "21", two)], "bradley_terry") == ([], 1)
    assert ranked_pairs([ranking("x", "11", two)], "bradley_terry") == ([], 1)


def test_bradley_terry_settles_by_the_others_what_a_pairs_own_votes_leave_open():
    votes = [ranking("x", "132"), ranking("y", "231"), ranking("z", "123"), ranking("w", "213")]
    # ab: 3 to 1, bc: 2 to 2, ac: 3 to 1
    assert dict(pairs_of(votes, "majority"))["ties"] == 1
    found = {p.chosen + p.rejected: p.margin for p in ranked_pairs(votes, "bradley_terry")[0]}
    assert found["AB"] == pytest.approx(found["AC"], abs=1e-4)
    more = [*votes, ranking("v", "112")]  # b over c by one more, a tie of a and b, a over c
    found = {p.chosen + p.rejected: p.margin for p in ranked_pairs(more, "bradley_terry")[0]}
    assert found["AC"] == pytest.approx(found["AB"] + found["BC"], abs=1e-6)  # strengths are one scale


def test_rounds_join_by_the_texts():
    """The same two responses in another task, the other way round, and with a third one."""
    later = Task("later", "p", {"a": "D", "b": "B", "c": "A "})
    rounds = [ranking("x", "123"), ranking("x", "123", later), ranking("y", "223", later)]
    # A over B in round one, B over A twice in round two
    assert pairs_of(rounds, "majority") == {
        ("B>A", round(1 / 3, 4)), ("A>C", 1.0), ("B>C", 1.0), ("D>B", 0.5), ("D>A", 1.0)
    }  # fmt: skip


def test_thumbs_up_against_thumbs_down_of_the_same_prompt():
    given = {
        ("p", "A"): "uud", ("p", "B"): "u", ("p", "C"): "d", ("p", "D"): "ud", ("p", "E"): "dd", ("q", "F"): "u"
    }  # fmt: skip
    thumbs = [Thumb(p, r, thumb == "u") for (p, r), marks in given.items() for thumb in marks]
    found, counts = thumb_pairs(thumbs)
    assert {(p.chosen + p.rejected, round(p.margin, 3)) for p in found} == {
        ("AC", 0.667), ("AE", 0.667), ("BC", 1.0), ("BE", 1.0)
    }  # fmt: skip
    assert counts == {"thumbs tied": 1, "prompts with one thumb": 1}


# ---- from files to the pairs of a recipe


def lines(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Forty tasks of three responses, two annotators who agree, one who says the contrary; and thumbs."""
    tasks = [
        {
            "id": f"t{i}",
            "prompt": f"Question {i}?" if i % 2 else f"\n\nHuman: Question {i}?\n\nAssistant:",
            "responses": [{"id": letter, "text": f" answer {letter}{i}"} for letter in "abc"],
            "criterion": "helpful",
        }
        for i in range(40)
    ]
    ranks = {"ann": "123", "ben": "123", "cyd": "321"}
    rows = [
        {"id": task["id"], "annotator": name, "ranks": dict(zip("abc", map(int, digits), strict=True))}
        for task in tasks
        for name, digits in ranks.items()
    ]
    thumbs = [
        {"prompt": "Thumbs?", "response": "yes", "thumb": "up", "annotator": "ann"},
        {"prompt": "Thumbs?", "response": "no", "thumb": "down", "annotator": "ann"},
        {"prompt": "Question 1?", "response": "answer c1", "thumb": "up", "annotator": "ann"},
        {"prompt": "Question 1?", "response": "answer a1", "thumb": "down", "annotator": "ann"},
    ]
    return {
        "tasks": [lines(tmp_path / "tasks.jsonl", tasks)],
        "rankings": [lines(tmp_path / "rankings.jsonl", [*rows, {"id": "nowhere", "annotator": "ann", "ranks": {}}])],
        "feedback": [lines(tmp_path / "thumbs.jsonl", thumbs)],
    }


def recipe(files, margin=None, **settings) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "data": {
                "prompts": {"dataset": "unused"},
                "preferences": {"margin": margin, "rankings": files | {"held_out": 0.25} | settings},
            },
            "policy": {"model": "unused"},
        }
    )


def test_files_to_agreement_flags_and_counts(files):
    found = gather(RankingsConfig(**files, drop_flagged=True))
    assert found.criterion == "helpful"
    assert found.flagged == ["cyd"]
    assert found.annotators["ann"]["agreement"] == 0.5
    assert found.annotators["cyd"]["agreement"] == 0
    assert found.matrix == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert found.report == {
        "rejected": {"unknown id": 1},
        "rankings": 120,
        "thumbs": 4,
        "dropped": {"another criterion": 0, "annotator flagged": 40},
        "pairs": {
            "from rankings": 120, "ties": 0, "thumbs tied": 0, "prompts with one thumb": 0, "from thumbs": 1,
            "ranked already": 1,
        },
    }  # fmt: skip


def test_a_recipes_pairs_are_split_by_prompt_and_stay_there_in_the_next_round(files, tmp_path):
    loaded = load_preferences(recipe(files, annotators=["ann", "ben"]))
    train, test = loaded.train, loaded.test
    assert len(train) + len(test) == 121
    assert not set(train["prompt"]) & set(test["prompt"])
    assert 3 <= len(set(test["prompt"])) <= 16  # about a quarter of 41
    row = next(row for row in train if row["prompt"].startswith("\n\n"))
    assert row["prompt"].endswith("Assistant:")
    assert row["chosen"].startswith(" answer ")
    assert "margin" not in train.column_names
    assert loaded.report["train"]["dropped"]["held out"] == len(test)
    assert loaded.report["rankings"]["dropped"]["annotator not asked for"] == 40
    assert load_preferences(recipe(files, annotators=["ann", "ben"])).train["prompt"][:] == train["prompt"][:]

    task = {"id": "new", "prompt": "Question 1?", "responses": [{"id": "a", "text": "new"}, {"id": "b", "text": "x"}]}
    more = [task, task | {"id": "newer", "prompt": "Question 99?"}]
    ranked = [{"id": row["id"], "annotator": "ann", "ranks": {"a": 2, "b": 1}} for row in more]
    joined = files | {
        "tasks": [*files["tasks"], lines(tmp_path / "tasks2.jsonl", more)],
        "rankings": [*files["rankings"], lines(tmp_path / "rankings2.jsonl", ranked)],
    }
    later = load_preferences(recipe(joined, annotators=["ann", "ben"]))
    assert len(later.train) + len(later.test) == 123
    assert set(test["prompt"]) <= set(later.test["prompt"]) <= set(test["prompt"]) | {"Question 99?"}


def test_margins_where_the_recipe_asks_for_them(files):
    votes = load_preferences(recipe(files, margin="consensus", feedback=[])).train["margin"]
    assert votes[:] == [pytest.approx(1 / 3)] * len(votes)
    fitted = load_preferences(recipe(files, margin="consensus", consensus="bradley_terry")).train["margin"]
    assert all(margin > 0 for margin in fitted)
    with pytest.raises(ValueError, match="rankings have no column gap"):
        recipe(files, margin="gap")
    with pytest.raises(ValueError, match="without a consensus there is none"):
        recipe(files, margin="consensus", consensus="none")


def test_without_a_consensus_repeated_pairs_are_votes(files):
    loaded = load_preferences(recipe(files, consensus="none", feedback=[]))
    assert len(loaded.train) + len(loaded.test) == 360


def test_a_set_of_several_criteria_asks_which(files, tmp_path):
    honest = {"prompt": "Thumbs?", "response": "maybe", "thumb": "down", "criterion": "honest"}
    several = files | {"feedback": [*files["feedback"], lines(tmp_path / "honest.jsonl", [honest])]}
    with pytest.raises(DataError, match=r"several criteria \(helpful, honest\).*criterion"):
        gather(RankingsConfig(**several))
    found = gather(RankingsConfig(**several, criterion="helpful"))
    assert found.report["dropped"]["another criterion"] == 1
    assert gather(RankingsConfig(**files, criterion="mine").model_copy(update={"rankings": []})).criterion == "mine"


def test_what_leaves_no_pair_is_refused(files, tmp_path):
    with pytest.raises(DataError, match=r"filter 'annotator not asked for' left none of 124"):
        gather(RankingsConfig(**files, annotators=["nobody"]))
    tied = [{"id": "t1", "annotator": "x", "ranks": {"a": 1, "b": 1, "c": 1}}]
    with pytest.raises(DataError, match=r"1 rankings and 0 thumbs give no pair \(3 ties\)"):
        gather(RankingsConfig(tasks=files["tasks"], rankings=[lines(tmp_path / "tied.jsonl", tied)]))
    alone = [{"id": "t1", "annotator": "x", "ranks": {"a": 1, "b": 2, "c": 1}}]
    with pytest.raises(DataError, match="the pairs have one prompt only"):
        load_preferences(recipe(files | {"feedback": [], "rankings": [lines(tmp_path / "alone.jsonl", alone)]}))


def test_rankings_without_tasks_or_files_are_refused():
    for setting, match in (("{rankings: [x.csv]}", "needs the tasks"), ("{}", "needs files in rankings or feedback")):
        with pytest.raises(RecipeError, match=match):
            load_recipe("embedded", [f"data.preferences.rankings={setting}"])
