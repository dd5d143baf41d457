"""Every form of a preference set in every published template: what SFT, the reward model and PPO read is what the
tokenizer's own template makes of the same conversation."""

import pytest
from chat_models import TEMPLATES, chat_folder, chat_tokenizer
from datasets import Dataset

from rlhf_lib.data.preferences import load_preferences
from rlhf_lib.data.prompt_tokens import tokenize_splits
from rlhf_lib.data.prompts import load_prompts
from rlhf_lib.recipe import Recipe
from rlhf_lib.training.reward_model import tokenize_pairs
from rlhf_lib.training.sft import tokenize_answers


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


ASKED = [user("Is tea hot?"), assistant("Mostly."), user("And coffee?")]
GOOD, BAD = "Coffee is hot too.", "No idea."
DIALOGUE = "\n\nHuman: Is tea hot?\n\nAssistant: Mostly.\n\nHuman: And coffee?\n\nAssistant:"
FORMS = {
    "dialogues": {"chosen": f"{DIALOGUE} {GOOD}", "rejected": f"{DIALOGUE} {BAD}"},
    "prompt and texts": {"prompt": DIALOGUE, "chosen": GOOD, "rejected": f" {BAD}"},
    "prompt and messages": {"prompt": ASKED, "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]},
    "conversations": {"chosen": [*ASKED, assistant(GOOD)], "rejected": [*ASKED, assistant(BAD)]},
    "UltraFeedback": {
        "prompt": "Is tea hot?",
        "prompt_id": "0",
        "chosen": [*ASKED, assistant(GOOD)],
        "rejected": [*ASKED, assistant(BAD)],
        "messages": [*ASKED, assistant(GOOD)],
        "score_chosen": 8.0,
        "score_rejected": 2.0,
    },
    "HelpSteer3": {"context": ASKED, "response1": BAD, "response2": GOOD, "overall_preference": 2},
}
PROMPTS = {  # the column that holds the prompts, in each
    "dialogues": ("chosen", "dialogue"),
    "prompt and texts": ("prompt", "dialogue"),
    "prompt and messages": ("prompt", "text"),
    "conversations": ("chosen", "text"),
    "UltraFeedback": ("messages", "text"),
    "HelpSteer3": ("context", "text"),
}


@pytest.fixture(scope="module")
def tokenizers() -> dict:
    return {name: chat_tokenizer(name) for name in TEMPLATES}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_form_in_every_template(name, form, tokenizers, tmp_path):
    tokenizer = tokenizers[name]
    column, kind = PROMPTS[form]
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "data": {
                "prompts": {"dataset": "x", "column": column, "query": {"kind": kind}, "held_out": 0},
                "preferences": {"shared_prompts": True},
            },
            "policy": {"model": "x"},
            "generation": {"max_new_tokens": 8},
        }
    )
    other = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi\n\nAssistant: No."}
    rows, tests = Dataset.from_list([FORMS[form]]), Dataset.from_list([other])
    prompts = load_prompts(recipe, {"prompts/train": rows}, chat=True)
    pairs = load_preferences(recipe, {"preferences/train": rows, "preferences/test": tests}, chat=True)

    def rendered(messages, **options) -> list[int]:
        return tokenizer.apply_chat_template(messages, return_dict=False, **options)

    asked, _, _ = tokenize_splits(prompts.train, prompts.test, recipe, tokenizer, 512)
    assert list(asked["input_ids"]) == [rendered(ASKED, add_generation_prompt=True)]
    assert [list(row) for row in asked["messages"]] == [ASKED]
    whole = {text: rendered([*ASKED, assistant(text)]) for text in (GOOD, BAD)}
    read, _ = tokenize_pairs(pairs.train, tokenizer, 512)
    assert (list(read["chosen_ids"]), list(read["rejected_ids"])) == ([whole[GOOD]], [whole[BAD]])
    learned, _ = tokenize_answers(pairs.train, tokenizer, 512, ["chosen", "rejected"], completion_only=True)
    assert list(learned["input_ids"]) == [whole[GOOD], whole[BAD]]


def test_the_data_stage_does_the_same_from_files(tmp_path):
    """What the recipe names, opened and prepared as a run does it."""
    from rlhf_lib.data.prepare import prepare
    from rlhf_lib.data.sources import load_sources
    from rlhf_lib.models.chat import policy_tokenizer

    Dataset.from_list(
        [FORMS["UltraFeedback"], FORMS["UltraFeedback"] | {"messages": [user("Tea?"), assistant("Yes.")]}]
    ).to_json(tmp_path / "rows.jsonl")
    Dataset.from_list([FORMS["HelpSteer3"] | {"context": [user("Milk?")]}]).to_json(tmp_path / "test.jsonl")
    folder = str(chat_folder(tmp_path / "model", "llama3"))
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "data": {
                "prompts": {"dataset": str(tmp_path / "rows.jsonl"), "column": "messages", "held_out": 0.5},
                "preferences": {"test": {"dataset": str(tmp_path / "test.jsonl")}},
            },
            "policy": {"model": folder, "system": "Be brief."},
            "generation": {"max_new_tokens": 8},
        }
    )
    made = prepare(recipe, load_sources(recipe), (policy_tokenizer(recipe.policy), 256))
    assert made.tokenized is not None
    assert made.pairs is not None
    every = [
        row["messages"]
        for rows in (*made.tokenized.values(), made.pairs.train, made.pairs.test)
        for row in rows.to_list()
    ]
    assert all(messages[0] == {"role": "system", "content": "Be brief."} for messages in every)
    assert sorted(len(messages) for messages in every) == [2, 2, 4, 4]
    template = chat_tokenizer("llama3")
    for row in [*made.tokenized["train"], *made.tokenized["test"]]:
        own = template.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=False)
        assert row["input_ids"] == own
