"""The reward tried on a recipe's own texts: which texts, which rewards, and never a blank one."""

import pytest
from datasets import Dataset
from tiny_models import tiny_gpt2, word_tokenizer

from rlhf_lib.errors import ModelError, RewardFailed
from rlhf_lib.plan.trial import can_try, trial_texts, try_judges, try_metrics, try_reward
from rlhf_lib.recipe import JudgeConfig, Recipe

called: list[tuple[list[str], list[str]]] = []


def length(queries, responses):
    called.append((queries, responses))
    return [float(len(response)) for response in responses]


def fussy(queries, responses):
    return [float(ord(response[1])) for response in responses]


def inconstant(queries, responses):
    return [float("inf") if response else 0.0 for response in responses]


@pytest.fixture
def make(tmp_path):
    """A recipe on a file of texts, one of them a single word and one empty."""
    Dataset.from_dict({"text": ["one", "w1 w2 w3 w4", "", "a\nb c"]}).to_json(tmp_path / "texts.jsonl")

    def made(reward: dict, kind: str = "text", **more) -> Recipe:
        prompts = {"dataset": str(tmp_path / "texts.jsonl"), "query": {"kind": kind, "min": 1, "max": 2}}
        return Recipe.model_validate(
            {"name": "x", "data": {"prompts": prompts} | more, "policy": {"model": "x"}, "reward": reward}
        )

    return made


def function(name: str) -> dict:
    return {"kind": "function", "function": f"{__name__}:{name}"}


def test_plain_texts_are_cut_in_two_of_which_neither_is_blank(make):
    texts = trial_texts(make(function("length")), None)
    assert sorted(texts) == [("a\nb", " c"), ("one", " one"), ("w1 w2", " w3 w4")]
    assert sorted(trial_texts(make(function("length"), "first_words"), None)) == [("a", " b c"), ("w1", " w2 w3 w4")]


def test_of_pairs_both_answers_are_scored_and_then_empty_ones(make):
    called.clear()
    pairs = Dataset.from_dict({"prompt": ["q", "r"], "chosen": [" yes", " yes"], "rejected": [" no", " no"]})
    assert try_reward(make(function("length")), pairs) == [4.0, 3.0, 4.0, 3.0, 0.0, 0.0, 0.0, 0.0]
    assert called == [(["q", "q", "r", "r"], [" yes", " no", " yes", " no"]), (["q", "q", "r", "r"], [""] * 4)]


def test_an_empty_query_gets_no_empty_response(make):
    called.clear()
    pairs = Dataset.from_dict({"prompt": ["", "r"], "chosen": ["yes", " yes"], "rejected": ["no", " no"]})
    assert try_reward(make(function("length")), pairs) == [3.0, 2.0, 4.0, 3.0, 0.0, 0.0]
    assert called[1] == (["r", "r"], ["", ""])


def test_a_reward_that_fails_says_on_what(make):
    with pytest.raises(RewardFailed) as raised:
        try_reward(make(function("fussy")), None)
    first, *frames = str(raised.value).split("\n")
    assert first.endswith(
        "raised IndexError: string index out of range, for empty responses, which a policy may give too"
    )
    assert f'File "{__file__}", line' in frames[0]
    with pytest.raises(ModelError, match="inconstant gave inf for the query"):
        try_reward(make(function("inconstant")), None)


def test_a_model_with_anothers_tokenizer_is_told(make, tmp_path):
    tiny_gpt2(vocabulary=3).save_pretrained(tmp_path / "m")
    word_tokenizer(61).save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match=r"/m can't score real texts .*index out of range.*tokenizer belong together"):
        try_reward(make({"kind": "likelihood", "model": str(tmp_path / "m")}), None)


def test_what_is_not_there_yet_or_dear_is_not_tried(make, tmp_path, monkeypatch):
    tiny_gpt2().save_pretrained(tmp_path / "m")
    word_tokenizer().save_pretrained(tmp_path / "m")
    likelihood = {"kind": "likelihood", "model": str(tmp_path / "m")}
    terms = {"kind": "sum", "terms": [{"weight": 2, "reward": likelihood}, {"reward": function("length")}]}
    scores = try_reward(make(terms), None)
    assert scores is not None
    assert len(scores) == 6
    assert not can_try(make({"kind": "preference"}, preferences={}))
    assert not can_try(make({"kind": "likelihood", "model": "nobody/not-downloaded"}))
    for part in ({"kind": "preference"}, likelihood | {"normalize": True}):  # there is nothing to weigh yet
        called.clear()
        unmade = {"kind": "sum", "terms": [{"reward": part}, {"reward": function("length")}]}
        assert try_reward(make(unmade, preferences={}), None) is None
        assert len(called) == 2  # the function is tried all the same
    monkeypatch.setattr("rlhf_lib.plan.trial.CHEAP", 100)
    assert not can_try(make(terms))
    called.clear()
    assert try_reward(make(terms), None) is None
    assert len(called) == 2  # the function is tried all the same


def solved(completions, solution, **kwargs):
    called.append((completions, solution))
    return [float(right) for right in solution]


def if_long(completions, **kwargs):
    return [None if len(said) < 100 else 1.0 for said in completions]


def test_a_function_that_needs_a_column_is_tried_on_the_prompts_rows(make, tmp_path):
    called.clear()
    Dataset.from_dict({"text": ["w1 w2", "w3 w4"], "solution": [12, 34]}).to_json(tmp_path / "texts.jsonl")
    pairs = Dataset.from_dict({"prompt": ["q"], "chosen": [" yes"], "rejected": [" no"]})
    scores = try_reward(make(function("solved")), pairs)
    assert sorted(zip(*called[0], strict=True)) == [(" w2", 12), (" w4", 34)]
    assert scores is not None
    assert scores[:2] == scores[2:]
    assert sorted(scores[:2]) == [12.0, 34.0]


def test_a_term_may_not_apply_and_a_reward_must(make, tmp_path):
    with pytest.raises(ModelError, match=r"the reward gave None for the query .* which only a term of a sum may say"):
        try_reward(make(function("if_long")), None)
    terms = [{"reward": function("if_long")}, {"reward": function("length")}]
    assert len(try_reward(make({"kind": "sum", "terms": terms}), None)) == 6
    unmade = [{"reward": {"kind": "preference"}}, {"reward": function("if_long")}]
    assert try_reward(make({"kind": "sum", "terms": unmade}, preferences={}), None) is None


# ---------------------------------------------------------------- metrics


def counting(samples, prompts, outputs, tokenizer):
    return {"tokens": [len(tokenizer(output).input_ids) for output in outputs], "n": len(samples)}


def first_letter(outputs):
    return {"letter": [ord(output[0]) for output in outputs]}


def wordy(outputs):
    return {"words": outputs}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "first_letter",
            RewardFailed,
            r"evaluation\.metrics .*:first_letter raised IndexError",
        ),  # for an empty response
        ("wordy", ModelError, "gave for 'words' .* which is no number"),
    ],
)
def test_metrics_are_tried_on_the_same_texts(make, name, error, message):
    recipe = make(function("length"))
    try_metrics(recipe, None)
    recipe.evaluation.metrics = [f"{__name__}:counting"]
    try_metrics(recipe, None)
    recipe.evaluation.metrics.append(f"{__name__}:{name}")
    with pytest.raises(error, match=message):
        try_metrics(recipe, None)


def test_judges_are_tried_as_the_reward_is_and_named(make):
    judges = {"long": function("length"), "short": function("fussy"), "other": {"pairs": "held_out"}}
    recipe = make(function("inconstant"), preferences={}).model_copy(deep=True)
    recipe.evaluation.judges = {name: JudgeConfig.model_validate(judges[name]) for name in ("long", "other")}
    pairs = Dataset.from_dict({"prompt": ["q"], "chosen": [" yes"], "rejected": [" no"]})
    assert try_judges(recipe, pairs) == {"long": [4.0, 3.0, 0.0, 0.0], "other": None}
    recipe.evaluation.judges["short"] = JudgeConfig.model_validate(judges["short"])
    with pytest.raises(RewardFailed, match=r"^evaluation\.judges\.short\.function .*:fussy raised IndexError"):
        try_judges(recipe, pairs)
