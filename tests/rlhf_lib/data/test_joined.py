"""Lists of data sets: joined, weighted, counted, and their faults named."""

import json
from collections import Counter

import pytest
from datasets import ClassLabel, Dataset

from rlhf_lib.data.corpus import load_corpus, load_texts
from rlhf_lib.data.labelled import load_labelled
from rlhf_lib.data.preferences import load_preferences
from rlhf_lib.data.prompts import load_prompts
from rlhf_lib.data.sources import load_split, text_column
from rlhf_lib.errors import DataError, RecipeError
from rlhf_lib.recipe import PerplexitySetConfig, Recipe, SourceConfig, flatten, load_recipe


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def written(name: str, rows: list[dict]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    return written


def texts(prefix: str, count: int) -> list[dict]:
    return [{"text": f"{prefix} {i}"} for i in range(count)]


def recipe(prompts: dict, seed: int = 0, **data) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "data": {"prompts": prompts, **data},
            "policy": {"model": "x"},
            "reward": {"kind": "classifier", "model": "x"},
            "seed": seed,
        }
    )


def test_rows_come_in_the_lists_order_and_missing_columns_are_empty(write) -> None:
    listed = [write("a.jsonl", texts("a", 2)), write("b.jsonl", [{"text": "b 0", "stars": 5}])]
    rows = load_split(SourceConfig(dataset=listed))
    assert text_column(rows, "text", "", "") == ["a 0", "a 1", "b 0"]
    assert rows["stars"][:] == [None, None, 5]
    # the split is the list's, or the item's own
    sliced = load_split(SourceConfig(dataset=[{"dataset": "a.jsonl", "split": "train[1:]"}, "b.jsonl"]))
    assert sliced["text"][:] == ["a 1", "b 0"]


def test_weights_repeat_and_thin_out_training_prompts_alone(write) -> None:
    listed = [
        {"dataset": write("a.jsonl", texts("a", 10)), "weight": 2.5},
        {"dataset": write("b.jsonl", [*texts("b", 20), *texts("a", 3)]), "weight": 0.25},
        write("c.jsonl", texts("c", 5)),
    ]
    one, again, other = (load_prompts(recipe({"dataset": listed, "held_out": 0.2}, seed)) for seed in (0, 0, 1))
    assert one.train["query"][:] == again.train["query"][:] != other.train["query"][:]
    counts, held_out = Counter(one.train["query"]), one.test["query"][:]
    assert len(set(held_out)) == len(held_out) == 7
    assert not set(held_out) & set(counts)
    sets = one.report["train"]["sets"]
    # a prompt that two sets have is the first one's: three of b's rows are dropped as duplicates
    assert {name: found["rows"] for name, found in sets.items()} == {"a.jsonl": 10, "b.jsonl": 23, "c.jsonl": 5}
    kept = Counter(query[0] for query in counts.elements())
    for name, weight in (("a.jsonl", 2.5), ("b.jsonl", 0.25), ("c.jsonl", 1)):
        assert sets[name]["taken"] == round(weight * sets[name]["kept"]) == kept[name[0]]
    assert {count for query, count in counts.items() if query[0] == "a"} == {2, 3}
    assert sum(found["kept"] for found in sets.values()) == one.report["train"]["kept"] == 28


def test_one_set_in_a_list_has_a_weight_too(write) -> None:
    write("a.jsonl", texts("a", 4))
    for dataset, rows in (("a.jsonl", 3), (["a.jsonl"], 3), ([{"dataset": "a.jsonl", "weight": 2}], 6)):
        prompts = load_prompts(recipe({"dataset": dataset, "held_out": 0.25}))
        assert len(prompts.train) == rows
        assert ("sets" in prompts.report["train"]) == (dataset != "a.jsonl")


def test_pairs_corpora_and_labelled_texts_join_alike(write) -> None:
    said = [
        {"chosen": f"\n\nHuman: {i}?\n\nAssistant: yes", "rejected": f"\n\nHuman: {i}?\n\nAssistant: no"} for i in "ab"
    ]
    asked = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in "cde"]
    one, two = write("said.jsonl", said), write("asked.jsonl", asked)
    write("test.jsonl", [asked[0], {"prompt": "z?", "chosen": "yes", "rejected": "no"}])
    listed = {"dataset": [one, {"dataset": two, "weight": 2}]}
    made = recipe({"dataset": "x"}, preferences={"train": listed, "test": {"dataset": "test.jsonl"}})
    pairs = load_preferences(made)
    assert Counter(pairs.train["prompt"]) == {
        "\n\nHuman: a?\n\nAssistant:": 1, "\n\nHuman: b?\n\nAssistant:": 1, "d?": 2, "e?": 2,
    }  # fmt: skip
    assert pairs.report["train"]["sets"]["asked.jsonl"] == {"rows": 3, "kept": 2, "taken": 4}

    a, b = write("a.jsonl", texts("a", 4)), write("b.jsonl", texts("b", 4))
    test = {"dataset": [write("t.jsonl", texts("t", 2)), write("u.jsonl", texts("u", 3))]}
    corpus = load_corpus(
        Recipe.model_validate(
            {
                "name": "x",
                "data": {
                    "prompts": {"dataset": "x"},
                    "corpus": {"train": {"dataset": [a, {"dataset": b, "weight": 3}]}, "test": test},
                },
                "policy": {"train": {"from_scratch": {}}},
                "reward": {"kind": "function", "function": "a:b"},
            }
        )
    )
    assert Counter(text[0] for text in corpus.train["chosen"]) == {"a": 4, "b": 12}
    assert len(corpus.test) == 5
    assert len(load_texts(PerplexitySetConfig(dataset=[a, b], column="text"))[0]) == 8

    named = [{"text": f"{word} {i}", "label": word} for word in ("glad", "sad") for i in range(3)]
    write("named.jsonl", named)
    labelled = Recipe.model_validate(
        {
            "name": "x",
            "data": {
                "prompts": {"dataset": "x"},
                "labelled": {
                    "train": {"dataset": [{"dataset": "named.jsonl", "split": "train[:4]", "weight": 2}]},
                    "test": {"dataset": "named.jsonl", "split": "train[4:]"},
                },
            },
            "policy": {"model": "x"},
            "reward": {"kind": "classifier", "model": "x"},
        }
    )
    assert len(load_labelled(labelled).train) == 8


def test_a_borrowed_list_keeps_its_sets_and_not_its_splits(write) -> None:
    write("a.jsonl", texts("a", 4))
    write("b.jsonl", texts("b", 4))
    listed = [{"dataset": "a.jsonl", "split": "train[:2]"}, {"dataset": "b.jsonl", "split": "train[:2]"}]
    prompts = load_prompts(recipe({"dataset": listed, "test": {"split": "test[2:]"}}))
    assert sorted(prompts.train["query"]) == ["a 0", "a 1", "b 0", "b 1"]
    assert sorted(prompts.test["query"]) == ["a 2", "a 3", "b 2", "b 3"]


def test_columns_of_two_types_matter_only_to_who_needs_them(tmp_path) -> None:
    labels = Dataset.from_dict({"text": ["x"], "label": [1]}).cast_column("label", ClassLabel(names=["no", "yes"]))
    labels.save_to_disk(tmp_path / "one")
    Dataset.from_dict({"text": ["y"], "label": [["spam", "ham"]]}).save_to_disk(tmp_path / "two")
    rows = load_split(SourceConfig(dataset=[str(tmp_path / "one"), str(tmp_path / "two")]))
    assert text_column(rows, "text", "", "") == ["x", "y"]
    with pytest.raises(
        DataError, match=r"column 'label' can't be joined: it holds List.* in data set .*two .*ClassLabel"
    ):
        text_column(rows, "label", "", "data.labelled.text")


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["a.jsonl", "gone.jsonl"], r"^data set gone\.jsonl .*doesn't exist\. Set data\.prompts\.dataset\[\]\.dataset"),
        (["a.jsonl", "b.jsonl"], r"^column 'text' not found in data set b\.jsonl \(split train\) \(available: body\)"),
        (["a.jsonl", {"dataset": "a.jsonl", "split": "x["}], r"Set data\.prompts\.dataset\[\]\.split"),
    ],
)
def test_a_fault_names_the_set(write, listed, message: str) -> None:
    write("a.jsonl", texts("a", 4))
    write("b.jsonl", [{"body": "b"}])
    with pytest.raises(DataError, match=message):
        load_prompts(recipe({"dataset": listed}))


def test_a_row_is_counted_in_its_own_set(write) -> None:
    write("a.jsonl", [{"text": "\n\nHuman: a\n\nAssistant: b"}] * 3)
    write("b.jsonl", [{"text": "\n\nHuman: a\n\nAssistant: b"}, {"text": "plain"}])
    with pytest.raises(DataError, match=r"data set b\.jsonl \(split train\), row 1, column 'text' is not a dialogue"):
        load_prompts(recipe({"dataset": ["a.jsonl", "b.jsonl"], "query": {"kind": "dialogue"}}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[]", "must be a data set's name, or a list of data sets to join"),
        ("5", "must be a data set's name"),
        ("[a, {dataset: b, wieght: 2}]", r"item 2 \(b\): unknown key 'wieght': did you mean 'weight'\?"),
        ("[{dataset: b, weight: 0}]", r"item 1 \(b\): weight: Input should be greater than 0"),
        ("[a, {weight: 2}]", "item 2: dataset: Field required"),
        ("[a, [b]]", "item 2 must be a data set's name, or {dataset: ..., weight: ...}"),
    ],
)
def test_a_wrong_list_names_the_item(given: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"data.prompts.dataset: {message}"):
        load_recipe("embedded", [f"data.prompts.dataset={given}"])


def test_evaluation_rows_have_no_weights() -> None:
    with pytest.raises(RecipeError, match=r"data\.prompts\.test: weights say how often training rows are used"):
        load_recipe("embedded", ["data.prompts.test.dataset=[{dataset: a, weight: 2}]"])


def test_a_list_survives_being_written_down() -> None:
    loaded = load_recipe("embedded", ["data.prompts.dataset=[a, {dataset: b, weight: 2}]"])
    assert Recipe.model_validate(loaded.model_dump(mode="json")) == loaded
    assert flatten(loaded)["data.prompts.dataset"][1]["weight"] == 2
