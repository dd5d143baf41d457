"""Labelled texts: labels as numbers, names, lists and features; what is dropped; labels that nothing names."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from rlhf_lib.data.labelled import label_names, load_labelled
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import Recipe

TEXTS = ["good", "bad", "fine", "dull"]


def recipe(**labelled) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "data": {"prompts": {"dataset": "unused"}, "labelled": labelled},
            "policy": {"model": "unused"},
            "reward": {"kind": "classifier", "label": "joy", "train": {"from_scratch": {}}},
        }
    )


def rows(labels, features=None, texts=TEXTS) -> Dataset:
    features = features and Features({"text": Value("string"), "label": features})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def read(train, test=None, features=None, **labelled):
    test = rows(test or train, features, [f"{text}!" for text in TEXTS])
    loaded = {"labelled/train": rows(train, features), "labelled/test": test}
    found = load_labelled(recipe(**labelled), loaded)
    return dict(zip(found.train["text"], found.train["labels"], strict=True)), found


@pytest.mark.parametrize(
    ("labels", "features", "given", "names", "expected"),
    [
        ([1, 0, 1, 0], None, ["bad", "good"], ["bad", "good"], [[1], [0], [1], [0]]),
        ([1, 0, 1, 0], ClassLabel(names=["n", "p"]), None, ["n", "p"], [[1], [0], [1], [0]]),
        ([[1, 0], [0], [1], [1, 1]], List(ClassLabel(names=["n", "p"])), None, ["n", "p"], [[0, 1], [0], [1], [1]]),
        ([1, 0, 1, 0], ClassLabel(names=["n", "p"]), ["neg", "pos"], ["neg", "pos"], [[1], [0], [1], [0]]),
        (["p", "n", "p", "m"], None, None, ["m", "n", "p"], [[2], [1], [2], [0]]),
        (["p", "n", "p", "n"], None, ["p", "n"], ["p", "n"], [[0], [1], [0], [1]]),
        ([["p"], ["n", "p"], ["p"], ["n"]], None, None, ["n", "p"], [[1], [0, 1], [1], [0]]),
        ([5, 1, 10, 5], None, None, ["1", "5", "10"], [[1], [0], [2], [1]]),
    ],
)
def test_labels_in_all_their_forms(labels, features, given, names, expected):
    by_text, found = read(labels, features=features, names=given)
    assert found.names == names
    assert [by_text[text] for text in TEXTS] == expected


def test_what_is_dropped():
    train = Dataset.from_dict(
        {"text": ["a", "a", "a", " ", "b", "c", "d"], "label": [[0], [0], [1], [0], [], None, [1]]}
    )
    test = Dataset.from_dict({"text": ["d", "e"], "label": [[1], [0]]})
    found = load_labelled(recipe(names=["x", "y"]), {"labelled/train": train, "labelled/test": test})
    assert sorted(zip(found.train["text"], found.train["labels"], strict=True)) == [("a", [0]), ("a", [1])]
    dropped = {"empty": 1, "no label": 2, "duplicate": 1, "in test": 1}
    assert found.report["train"] == {"rows": 7, "dropped": dropped, "kept": 2}
    assert found.report["test"]["kept"] == 2


def test_the_limit_draws_with_the_seed():
    _, found = read([1, 0, 1, 0], names=["x", "y"], limit=3)
    assert len(found.train) == 3
    assert found.report["train"]["dropped"]["limit"] == 1
    assert len(found.test) == 4


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        ([0, 1, 2, 1], ["x", "y"], r"row 2, column 'label': label 2 has no name, the 2 names are those of 0 to 1"),
        ([0, -1, 1, 1], ["x", "y"], r"row 1, column 'label': label -1 has no name"),
        (
            ["x", "y", "x", "z"],
            ["x", "y"],
            r"row 3, column 'label': unknown label 'z' \(known: x, y\)\. Set",
        ),
        ([0.5, 1.0, 0.0, 1.0], ["x", "y"], r"row 0, column 'label' holds 0.5, neither a label's number nor its name"),
        ([1, 1, 1, 1], None, "has 1 different label, "),
        ([0, 0, 0, 0], ["only"], r"data\.labelled\.names has 1 name, and a classifier needs two: complete it"),
        ([0, 1, 0, 1], ["x", "x"], "data.labelled.names has 'x' twice"),
    ],
)
def test_a_label_that_nothing_names_is_an_error_with_its_row(labels, given, message):
    with pytest.raises(DataError, match=message):
        read(labels, names=given)


def test_the_sets_own_names_in_another_order_are_refused():
    assert label_names(["p", "n"], None, []) == ["p", "n"]
    with pytest.raises(DataError, match=r"label 0 is 'n' there, 'p' here\): set it to null"):
        label_names(["p", "n"], ["n", "p"], [])


def test_missing_columns_are_named():
    with pytest.raises(DataError, match=r"column 'labels' not found in .*text, label\)\. Set data\.labelled\.label"):
        read([0, 1, 0, 1], label="labels")
    with pytest.raises(
        DataError, match=r"'label' holds int64, not text\. .*set data\.labelled\.text to a column of texts \(text\)"
    ):
        read([0, 1, 0, 1], text="label")
