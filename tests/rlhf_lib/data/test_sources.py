"""Opening data sets from wherever they lie, and their fingerprint."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import datasets
import pytest

from rlhf_lib.data.sources import EMBEDDED, fingerprint, load_sources, load_split, text_column
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import Recipe, SourceConfig

ROWS = [{"text": f"row {i}", "label": i} for i in range(10)]


def write(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """The hub's layout: two sub-sets, one of them with two splits."""
    write(tmp_path / "set/a/train.jsonl.gz")
    write(tmp_path / "set/a/test.jsonl.gz", ROWS[:3])
    write(tmp_path / "set/b/test.jsonl.gz", ROWS[3:5])
    return tmp_path / "set"


def test_folders_in_the_hubs_layout(folder) -> None:
    assert load_split(SourceConfig(dataset=str(folder), data_dir="a", split="train")).to_list() == ROWS
    assert load_split(SourceConfig(dataset=str(folder), data_dir="b", split="test")).to_list() == ROWS[3:5]
    assert load_split(SourceConfig(data_dir="a", split="train[2:4]"), default=str(folder)).to_list() == ROWS[2:4]


def test_folders_with_the_same_readme_are_told_apart_and_read_anew_when_edited(tmp_path) -> None:
    for number, place in enumerate(("one", "other", "one")):
        folder = tmp_path / place / "set"
        write(folder / "data/train.jsonl", [{"text": f"{place} {number}"}])
        described = "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/train.jsonl}\n"
        (folder / "README.md").write_text(f"---\n{described}---\n")
        assert load_split(SourceConfig(dataset=str(folder))).to_list() == [{"text": f"{place} {number}"}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz"])
def test_a_single_json_file_is_the_split_asked_for(tmp_path, name: str) -> None:
    assert load_split(SourceConfig(dataset=write(tmp_path / name), split="test[:2]")).to_list() == ROWS[:2]


def test_a_json_list_csv_and_parquet(tmp_path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(ROWS))
    rows = datasets.Dataset.from_list(ROWS)
    rows.to_csv(tmp_path / "rows.csv")
    rows.to_parquet(tmp_path / "rows.parquet")
    for name in ("list.json", "rows.csv", "rows.parquet"):
        assert load_split(SourceConfig(dataset=str(tmp_path / name))).to_list() == ROWS, name


def test_folders_of_save_to_disk(tmp_path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows, test=rows.select([7])).save_to_disk(tmp_path / "two")
    assert load_split(SourceConfig(dataset=str(tmp_path / "one"), split="train[-1:]")).to_list() == ROWS[-1:]
    assert load_split(SourceConfig(dataset=str(tmp_path / "two"), split="test")).to_list() == ROWS[7:8]
    with pytest.raises(DataError, match=r'Unknown split "dev".*train.*test'):
        load_split(SourceConfig(dataset=str(tmp_path / "two"), split="dev"))


def test_the_embedded_set_and_its_slices() -> None:
    train, test = (load_split(SourceConfig(dataset=EMBEDDED, split=split)) for split in ("train", "test"))
    assert {"chosen", "rejected"} <= set(train.column_names)
    assert load_split(SourceConfig(dataset=EMBEDDED, split="train[5:7]")).to_list() == train.select([5, 6]).to_list()
    assert len(load_split(SourceConfig(dataset=EMBEDDED, split="train[:10]+test"))) == 10 + len(test)
    with pytest.raises(DataError, match='Unknown split "dev"'):
        load_split(SourceConfig(dataset=EMBEDDED, split="dev"))
    with pytest.raises(DataError, match=EMBEDDED):
        load_split(SourceConfig(dataset="embedded/other"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "{folder}/nowhere"}, r"nowhere doesn't exist\. Set KEY\.dataset"),
        ({"dataset": "nowhere.jsonl"}, r"nowhere\.jsonl doesn't exist\. Set KEY\.dataset"),
        ({"dataset": "{folder}", "data_dir": "c"}, r"which has: a, b, empty\. Set KEY\.data_dir"),
        ({"dataset": "{folder}", "data_dir": "b"}, r"Unknown split \"train\".*\['test'\].* Set KEY\.split"),
        ({"dataset": "{folder}", "data_dir": "a", "split": "train[x]"}, r"train\[x\].* Set KEY\.split"),
        ({"dataset": "{folder}", "data_dir": "a", "split": "train[5:5]"}, r"no data.* Set KEY\.split"),
        ({"dataset": "{folder}", "data_dir": "a", "name": "x"}, r"'x' not found.* Set KEY\.name"),
        ({"dataset": "{folder}/empty"}, r"empty.* can't be read: .* Check KEY\.dataset"),
        (
            {"dataset": "{folder}/broken.jsonl"},
            r"broken\.jsonl, line 2 is not valid JSON \(Expecting value at col",
        ),
        ({"dataset": "{folder}/cut.jsonl.gz"}, r"cut\.jsonl\.gz.* can't be read: .* Check KEY\.dataset"),
        ({"dataset": "{folder}/notes.txt"}, r"notes\.txt has an unknown format \(known: \.jsonl"),
        ({}, r"KEY\.dataset is missing"),
    ],
)
def test_what_is_missing_or_broken_is_named_with_its_mend(folder, settings: dict, message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "broken.jsonl").write_text('{"text": "a"}\n{"text": ')
    (folder / "cut.jsonl.gz").write_bytes((folder / "a/train.jsonl.gz").read_bytes()[:40])
    (folder / "notes.txt").write_text("notes")
    settings = {name: value.format(folder=folder) for name, value in settings.items()}
    with pytest.raises(DataError, match=message.replace("KEY", r"data\.prompts\.test")) as refused:
        load_split(SourceConfig(**settings), key="data.prompts.test")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"nowhere doesn't exist\. Set data\.prompts\.dataset"),
        ({"dataset": "{folder}/a.txt"}, r"evaluation\.perplexity\.dataset: .*a\.txt has an unknown format"),
        ({"dataset": "{folder}", "data_dir": "a", "split": "dev"}, r"Set evaluation\.perplexity\.split"),
    ],
)
def test_a_set_that_is_another_sections_is_mended_there(folder, settings: dict, message: str) -> None:
    (folder / "a.txt").write_text("")
    settings = {name: value.format(folder=folder) for name, value in settings.items()}
    with pytest.raises(DataError, match=message):
        load_split(SourceConfig(**settings), default=str(folder / "nowhere"), key="evaluation.perplexity")
    with pytest.raises(DataError, match=r"Set evaluation\.perplexity\.split"):
        load_split(SourceConfig(split="dev", data_dir="a"), default=str(folder), key="evaluation.perplexity")


def test_a_column_that_holds_no_text_is_told_with_what_it_holds() -> None:
    said = [{"role": "user", "content": "hi"}]
    rows = datasets.Dataset.from_dict({"text": ["a"], "said": [said], "words": [["a", "b"]], "number": [1.5]})
    for column, held in {
        "said": r"chat messages, not text\. Join each list of messages into one text, '\\n\\nHuman: ",
        "words": r"lists, not text\. Join each list into one text",
        "number": r"float64, not text\. Make its values texts",
    }.items():
        with pytest.raises(
            DataError, match=f"column '{column}' holds {held}.*, or set KEY to a column of texts .text.$"
        ):
            text_column(rows, column, "data set x", "KEY")
        with pytest.raises(DataError, match=f"column '{column}' holds {held}") as fixed:
            text_column(rows, column, "data set x", None)
        assert "set " not in str(fixed.value).partition(". ")[2]


def test_an_offline_hub_is_told_from_a_missing_set() -> None:
    """In a process of its own: `datasets` reads the switch when it is imported."""
    code = """
from rlhf_lib.data.sources import load_split
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import Source
try:
    load_split(Source(dataset="some-owner/some-set-that-is-not-cached"))
except DataError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "some-owner/some-set-that-is-not-cached" in done.stdout
    assert "HF_HUB_OFFLINE is set" in done.stdout
    assert "set data.prompts.dataset to the local folder" in done.stdout


def test_columns_that_are_missing_or_no_text() -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", None], "label": [0, 1], "turns": [["a"], ["b"]]})
    assert text_column(rows, "text", "set", "data.prompts.column") == ["a", ""]
    with pytest.raises(DataError, match=r"column 'body' not found in set \(available: text, label, turns\)"):
        text_column(rows, "body", "set", "data.prompts.column")
    for column in ("label", "turns"):
        with pytest.raises(DataError, match=f"column '{column}' holds .*, not text"):
            text_column(rows, column, "set", "data.prompts.column")


def test_the_fingerprint_follows_content_alone(folder, tmp_path) -> None:
    there = load_split(SourceConfig(dataset=str(folder), data_dir="a", split="train"))
    shutil.copytree(folder, tmp_path / "elsewhere")
    here = load_split(SourceConfig(dataset=str(tmp_path / "elsewhere"), data_dir="a", split="train"))
    chunked = datasets.concatenate_datasets([there.select(range(4)), there.select(range(4, 10))])
    same = {fingerprint(rows) for rows in (there, here, chunked, datasets.Dataset.from_list(ROWS))}
    assert len(same) == 1

    rows = datasets.Dataset.from_list(ROWS)
    other = [
        rows.select(range(9)),
        rows.select([1, 0, *range(2, 10)]),
        rows.remove_columns("label"),
        rows.rename_column("label", "stars"),
        datasets.Dataset.from_list([*ROWS[:9], {"text": "row 9", "label": 10}]),
    ]
    assert len({fingerprint(rows) for rows in other} | same) == 1 + len(other)


def test_rows_across_the_fingerprints_batches_count() -> None:
    texts = [str(i) for i in range(2500)]
    before = fingerprint(datasets.Dataset.from_dict({"text": texts}))
    texts[2400] = "changed"
    assert fingerprint(datasets.Dataset.from_dict({"text": texts})) != before


def test_a_recipes_sets_are_opened_once_and_default_to_the_prompts_set(folder) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "data": {
                "prompts": {"dataset": str(folder), "data_dir": "a"},
                "preferences": {"train": {"data_dir": "a"}, "test": {"data_dir": "b"}},
            },
            "policy": {"model": "gpt2"},
        }
    )
    loaded = load_sources(recipe)
    assert {role: len(rows) for role, rows in loaded.items()} == {
        "prompts/train": 10,
        "preferences/train": 10,
        "preferences/test": 2,
    }
    assert loaded["prompts/train"] is loaded["preferences/train"]
    assert set(load_sources(recipe, "prompts")) == {"prompts/train"}
