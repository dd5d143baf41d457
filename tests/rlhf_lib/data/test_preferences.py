"""Preference pairs: what is kept, what is dropped and counted, what is refused."""

import json

import pytest

from rlhf_lib.data.preferences import Pairs, load_preferences
from rlhf_lib.errors import DataError
from rlhf_lib.recipe import Recipe


def dialogue(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant:{answer}"


def pair(question: str, chosen: str = " good", rejected: str = " bad") -> dict:
    return {"chosen": dialogue(question, chosen), "rejected": dialogue(question, rejected)}


def load(tmp_path, train: list[dict], test: list[dict], seed: int = 0, **settings) -> Pairs:
    files = {}
    for name, rows in (("train", train), ("test", test)):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    preferences = {name: {"dataset": str(file)} for name, file in files.items()} | settings
    recipe = {
        "name": "x",
        "data": {"prompts": {"dataset": str(files["train"])}, "preferences": preferences},
        "policy": {"model": "gpt2"},
        "seed": seed,
    }
    return load_preferences(Recipe.model_validate(recipe))


def test_a_pair_is_prompt_and_last_answers(tmp_path) -> None:
    earlier = dialogue("Tea?", " Yes.")
    rows = [{"chosen": earlier + dialogue("Hot?", " Sure. \n"), "rejected": earlier + dialogue("Hot?", "No")}]
    pairs = load(tmp_path, rows, [pair("other")])
    assert pairs.train.to_list() == [
        {"prompt": earlier + "\n\nHuman: Hot?\n\nAssistant:", "chosen": " Sure.", "rejected": " No"}
    ]


def test_what_is_dropped_is_counted(tmp_path) -> None:
    train = [
        pair("kept"),
        pair("kept", " better", " bad"),  # the same prompt, another pair
        pair("kept"),  # the first one again
        pair("same", " x", " x \n"),
        pair("empty", " x", " \n"),
        {"chosen": dialogue("a", " x"), "rejected": dialogue("b", " y")},
        pair("leaked", " 1", " 2"),
        pair("leaked", " 3", " 4"),
    ]
    pairs = load(tmp_path, train, [pair("leaked"), pair("held out")])
    assert pairs.report["train"] == {
        "rows": 8,
        "dropped": {
            "prompts differ": 1,
            "empty answer": 1,
            "identical answers": 1,
            "repeated pair": 1,
            "prompt in test": 2,
        },
        "kept": 2,
    }
    assert sorted(pairs.train["chosen"]) == [" better", " good"]
    assert (pairs.report["test"]["rows"], pairs.report["test"]["kept"]) == (2, 2)
    assert not set(pairs.train["prompt"]) & set(pairs.test["prompt"])


def test_a_closed_set_of_prompts_keeps_pairs_that_share_them(tmp_path) -> None:
    train = [pair("tea"), pair("tea", " better"), pair("ice")]
    test = [pair("tea"), pair("ice", " cold")]
    pairs = load(tmp_path, train, test, shared_prompts=True)
    assert sorted(pairs.train["chosen"]) == [" better", " good"]  # not the pair that is a test pair itself
    assert pairs.report["train"]["dropped"]["in test"] == 1
    with pytest.raises(DataError, match=r"set data\.preferences\.shared_prompts to true"):
        load(tmp_path, train, test)


def test_limit_draws_with_the_seed(tmp_path) -> None:
    train = [pair(str(i)) for i in range(40)]
    drawn = [set(load(tmp_path, train, [pair("t")], seed, limit=5).train["prompt"]) for seed in (0, 0, 1)]
    assert len(drawn[0]) == 5
    assert drawn[0] == drawn[1] != drawn[2]
    assert load(tmp_path, train, [pair("t")], limit=5).report["train"]["dropped"]["limit"] == 35
    assert load(tmp_path, train, [pair("t")], limit=50).report["train"]["kept"] == 40


def test_answers_beside_a_prompt_column(tmp_path) -> None:
    rows = [
        {"prompt": "Q: tea?\nA:", "chosen": "yes\n", "rejected": " no"},
        {"prompt": "Q: 2?\n", "chosen": "Q: 2?\nyes", "rejected": "no"},
    ]
    pairs = load(tmp_path, rows, [{"prompt": "other", "chosen": "a", "rejected": "b"}])
    assert sorted(pairs.train.to_list(), key=lambda row: row["prompt"]) == [
        {"prompt": "Q: 2?\n", "chosen": "yes", "rejected": "no"},
        {"prompt": "Q: tea?\nA:", "chosen": " yes", "rejected": " no"},
    ]


def test_margins_stay_with_their_pairs(tmp_path) -> None:
    train = [pair(str(i)) | {"gap": i / 2} for i in range(20)]
    pairs = load(tmp_path, train, [pair("t") | {"gap": 1}], margin="gap")
    assert {row["prompt"]: row["margin"] for row in pairs.train} == {
        f"\n\nHuman: {i}\n\nAssistant:": i / 2 for i in range(20)
    }
    with pytest.raises(DataError, match=r"row 1: margin column 'gap' holds None, not a number\. Set"):
        load(tmp_path, [pair("a") | {"gap": 1.0}, pair("b") | {"gap": None}], [pair("t") | {"gap": 1}], margin="gap")


@pytest.mark.parametrize(
    ("train", "settings", "message"),
    [
        (
            [pair("a"), {"chosen": "Great film.", "rejected": "Bad."}],
            {},
            r"row 1, column 'chosen' is not a dialogue.*Great f.*\. Answers alone need a column 'prompt' beside them",
        ),
        (
            [pair("a")],
            {"chosen": "better"},
            r"column 'better' not found in .*available: chosen, rejected\)\. Set data\.preferences\.chosen",
        ),
        ([pair("a")], {"margin": "gap"}, r"column 'gap' not found"),
        ([pair("a")], {"rejected": "chosen"}, r"filter 'identical answers' left none of 1 rows"),
        ([pair("a", "", "")], {}, r"filter 'empty answer' left none of 1 rows"),
        ([pair("t")], {}, r"train\.jsonl.*filter 'prompt in test' left none of 1 rows.*data\.preferences\.test"),
        ([{"chosen": 1, "rejected": 2}], {}, r"column 'chosen' holds .*, not text"),
    ],
)
def test_bad_pairs_are_refused(tmp_path, train: list[dict], settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, train, [pair("t")], **settings)


def test_a_row_is_refused_by_its_own_columns_name(tmp_path) -> None:
    rows = [{"better": "Great film.", "worse": "Bad."}]
    with pytest.raises(DataError, match=r"row 0, column 'better' is not a dialogue"):
        load(tmp_path, rows, rows, chosen="better", rejected="worse")


def test_transfer_pairs_are_cleaned_and_share_no_training_prompt(tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere.jsonl"
    rows = [pair("new"), pair("new"), pair("learned", " x", " y"), pair("same", " x", " x"), pair("tested")]
    elsewhere.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = load(tmp_path, [pair("learned")], [pair("tested")], transfer={"dataset": str(elsewhere)})
    assert pairs.transfer is not None
    assert sorted(pairs.transfer["prompt"]) == [dialogue("new", ""), dialogue("tested", "")]
    assert pairs.report["transfer"]["kept"] == 2
    dropped = {reason: count for reason, count in pairs.report["transfer"]["dropped"].items() if count}
    assert dropped == {"identical answers": 1, "repeated pair": 1, "prompt in training": 1}
    assert load(tmp_path, [pair("learned")], [pair("tested")]).transfer is None
    elsewhere.write_text(json.dumps(pair("learned", " x", " y")) + "\n")
    with pytest.raises(DataError, match=r"point data\.preferences\.transfer at other rows"):
        load(tmp_path, [pair("learned")], [pair("tested")], transfer={"dataset": str(elsewhere)})
