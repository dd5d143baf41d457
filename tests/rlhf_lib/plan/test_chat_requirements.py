"""What a chat model's template can't do is told before anything costly."""

import pytest
from chat_models import chat_folder
from transformers import GenerationConfig

from rlhf_lib.errors import DataError, ModelError
from rlhf_lib.plan.requirements import check_chat
from rlhf_lib.recipe import Recipe


def recipe(policy: dict, **sections) -> Recipe:
    reward = {"kind": "function", "function": "a:b"}
    return Recipe.model_validate(
        {"name": "x", "data": {"prompts": {"dataset": "x"}}, "policy": policy, "reward": reward} | sections
    )


def test_a_turn_that_no_eos_ends_is_a_remark(tmp_path):
    folder = chat_folder(tmp_path / "model", "qwen2_5")
    assert check_chat(recipe({"model": str(folder)}), False) is None
    config = GenerationConfig.from_pretrained(folder)
    config.eos_token_id = config.eos_token_id[1]
    config.save_pretrained(folder)
    remark = check_chat(recipe({"model": str(folder)}), False)
    assert remark is not None
    assert remark.startswith("the chat template ends a turn with <|im_end|>, which is none of the EOS ids")
    assert check_chat(recipe({"model": str(folder), "train": {}}, data=PAIRS), False) is None  # SFT teaches it


PAIRS = {"prompts": {"dataset": "x"}, "preferences": {}}


def test_sft_on_every_turn_needs_marks(tmp_path):
    folder = str(chat_folder(tmp_path / "model", "llama3_2"))
    with pytest.raises(ModelError, match="the chat template doesn't mark what the assistant says"):
        check_chat(recipe({"model": folder, "train": {}}, data=PAIRS), False)
    assert check_chat(recipe({"model": folder, "train": {"completion_only": True}}, data=PAIRS), False) is None


def test_a_reward_models_template_must_take_the_system_message(tmp_path):
    policy, reward = (str(chat_folder(tmp_path / name, name)) for name in ("qwen2_5", "gemma"))
    asked = recipe({"model": policy, "system": "Be brief."}, reward={"kind": "classifier", "model": reward})
    with pytest.raises(
        ModelError, match=r"the chat template of .*gemma refuses a system message .* set policy.system to null"
    ):
        check_chat(asked, False)


def test_a_seq2seq_model_has_no_conversations(tmp_path):
    with pytest.raises(ModelError, match="is for causal models"):
        check_chat(recipe({"model": "x", "chat_template": "chatml"}), True)


def test_a_corpus_of_plain_texts_is_no_conversation(tmp_path):
    from rlhf_lib.data.corpus import load_corpus

    (tmp_path / "texts.jsonl").write_text('{"text": "Once upon a time."}\n{"text": "There was a king."}\n')
    file = {"dataset": str(tmp_path / "texts.jsonl")}
    asked = recipe(
        {"train": {"from_scratch": {}}, "chat_template": "chatml"},
        data={
            "prompts": file,
            "corpus": {"train": file | {"split": "train[:1]"}, "test": file | {"split": "train[1:]"}},
        },
    )
    with pytest.raises(
        DataError, match=r"a chat model learns conversations that end with an answer.* policy.chat to off"
    ):
        load_corpus(asked, chat=True)
