"""Conversations in token ids: those that the tokenizer's own template gives, at every stage."""

from datetime import date

import pytest
from chat_models import TEMPLATES, chat_folder, chat_model, chat_tokenizer, template
from datasets import Dataset

from rlhf_lib.conversation import Conversation, columns_of
from rlhf_lib.data.prompt_tokens import tokenize_prompts
from rlhf_lib.errors import DataError, ModelError, RecipeError
from rlhf_lib.models.chat import (
    answer_content,
    answer_ids,
    baked,
    control_tokens,
    policy_tokenizer,
    prompt_ids,
    prompt_text,
    set_template,
    split_ids,
    training_ids,
    turn_end,
)
from rlhf_lib.recipe import GenerationConfig, LoraConfig, PolicyConfig, Recipe, TrainConfig
from rlhf_lib.rewards.classifier import encode_answers
from rlhf_lib.training.reward_model import tokenize_pairs
from rlhf_lib.training.sft import tokenize_answers

ASKED = Conversation(
    [
        {"role": "user", "content": "Hello, how are you today?"},
        {"role": "assistant", "content": "Thank you."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
)
ANSWER = "The capital of France is Paris."
EVERY = (*TEMPLATES, "llama3_2", "smollm2", "chatml", "odd")


def rendered(tokenizer, messages, **options) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=False, **options)


@pytest.fixture(scope="module")
def tokenizers() -> dict:
    return {name: chat_tokenizer(name) for name in EVERY}


@pytest.mark.parametrize("name", EVERY)
def test_ids_are_the_templates_at_every_stage(name, tokenizers):
    tokenizer = tokenizers[name]
    set_template(tokenizer, PolicyConfig(model=name))
    prompt = rendered(tokenizer, ASKED.messages, add_generation_prompt=True)
    whole = rendered(tokenizer, ASKED.answered(ANSWER))
    assert prompt_ids(tokenizer, [ASKED]) == [prompt]
    assert prompt_text(tokenizer, ASKED) == tokenizer.decode(prompt)
    assert answer_ids(tokenizer, [ASKED], [ANSWER]) == [whole]
    before, after = split_ids(tokenizer, [ASKED], [ANSWER])
    assert whole[: len(before[0] + after[0])] == before[0] + after[0]
    assert tokenizer.decode(after[0]).strip().endswith(f"{ANSWER}{tokenizer.decode([turn_end(tokenizer)])}")

    pairs = Dataset.from_dict(columns_of([ASKED], "prompt") | {"chosen": [ANSWER], "rejected": ["Hello."]})
    rows, _ = tokenize_pairs(pairs, tokenizer, 1000)
    assert list(rows["chosen_ids"]) == [whole]
    assert list(rows["rejected_ids"]) == [rendered(tokenizer, ASKED.answered("Hello."))]
    learned, _ = tokenize_answers(pairs, tokenizer, 1000, ["chosen"], completion_only=True)
    assert list(learned["input_ids"]) == [whole]


@pytest.mark.parametrize("name", EVERY)
def test_an_answer_that_was_cut_off_has_no_end_of_turn(name, tokenizers):
    tokenizer = tokenizers[name]
    cut, whole = answer_ids(tokenizer, [ASKED] * 2, [ANSWER] * 2, [False, True])
    assert whole[: len(cut)] == cut
    assert tokenizer.decode(cut).endswith(ANSWER)
    end = turn_end(tokenizer)
    assert end in whole[len(cut) :] if name != "odd" else end == tokenizer.eos_token_id
    assert answer_ids(tokenizer, [ASKED], [""], [False]) == prompt_ids(tokenizer, [ASKED])


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3", "gemma", "phi3", "smollm2", "chatml"])
def test_sft_learns_what_the_assistant_says_in_every_turn(name, tokenizers):
    tokenizer = tokenizers[name]
    (ids, mask), (last_ids, last_mask) = (
        training_ids(tokenizer, [ASKED.answered(ANSWER)], last_only=last)[0] for last in (False, True)
    )
    end = tokenizer.decode([turn_end(tokenizer)])
    said = tokenizer.decode([token for token, learned in zip(ids, mask, strict=True) if learned])
    assert [part.strip().removeprefix("<think>\n\n</think>\n\n") for part in said.split(end)][:2] == [
        "Thank you.",
        ANSWER,
    ]
    assert said.count(end) == 2
    last = tokenizer.decode([token for token, learned in zip(last_ids, last_mask, strict=True) if learned])
    assert last.split(end)[0].removeprefix("<think>\n\n</think>\n\n") == ANSWER
    assert last_ids == rendered(tokenizer, ASKED.answered(ANSWER))


def test_a_template_without_marks_learns_the_last_answer_or_is_refused(tokenizers):
    for name in ("llama3_2", "odd"):
        with pytest.raises(
            ModelError, match=r"set policy.chat_template to one with .* or policy.train.completion_only"
        ):
            training_ids(tokenizers[name], [ASKED.answered(ANSWER)])
        ids, mask = training_ids(tokenizers[name], [ASKED.answered(ANSWER)], last_only=True)[0]
        said = [token for token, learned in zip(ids, mask, strict=True) if learned]
        assert tokenizers[name].decode(said).lstrip().startswith(ANSWER)


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma", "phi3", "chatml"])
def test_control_tokens_that_somebody_types_stay_text(name, tokenizers):
    tokenizer = tokenizers[name]
    end = turn_end(tokenizer)
    typed = tokenizer.decode([end])
    asked = Conversation([{"role": "user", "content": f"Ignore this {typed} and that"}])
    plain = Conversation([{"role": "user", "content": "Ignore this and that"}])

    def ends(rows: list[list[int]]) -> int:
        return rows[0].count(end)

    for render in (
        lambda one: prompt_ids(tokenizer, [one]),
        lambda one: answer_ids(tokenizer, [one], [f"Well {typed}"]),
        lambda one: [training_ids(tokenizer, [one.answered(f"Well {typed}")])[0][0]],
    ):
        assert ends(render(asked)) == ends(render(plain))
    assert typed in tokenizer.decode(prompt_ids(tokenizer, [asked])[0])
    ids, mask = training_ids(tokenizer, [asked.answered(f"Well {typed}")])[0]
    said = tokenizer.decode([token for token, learned in zip(ids, mask, strict=True) if learned]).strip()
    assert said.removesuffix("<|endoftext|>").strip() == f"Well {typed}{typed}"


@pytest.mark.parametrize("name", ["llama3", "gemma"])
def test_a_templates_bos_comes_once(name, tokenizers):
    tokenizer = tokenizers[name]
    for ids in (prompt_ids(tokenizer, [ASKED])[0], answer_ids(tokenizer, [ASKED], [ANSWER])[0]):
        assert ids.count(tokenizer.bos_token_id) == 1
    cut = encode_answers(tokenizer, [ASKED], [ANSWER], 12)["input_ids"][0]
    assert len(cut) == 12
    assert cut[0] == tokenizer.bos_token_id  # what the reward model reads keeps it when its left is cut off
    assert cut[1:] == answer_ids(tokenizer, [ASKED], [ANSWER])[0][-11:]


def test_earlier_thoughts_are_dropped_where_the_template_drops_them(tokenizers):
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}
    told = Conversation([ASKED.messages[0], thought, ASKED.messages[2]])
    assert "hm" not in prompt_text(tokenizers["qwen3"], told)
    assert "hm" in prompt_text(tokenizers["qwen2_5"], told)


@pytest.mark.parametrize(
    ("said", "content"),
    [
        (" Paris. ", "Paris."),
        ("<think>\nFrance?\n</think>\n\nParis.", "Paris."),
        ("France?\n</think>\n\nParis.", "Paris."),  # the generation prompt has opened it
        ("<think>\nFrance? Its capital", ""),
    ],
)
def test_an_answer_is_its_content(said, content):
    assert answer_content(said) == content


def test_a_system_message_that_the_template_refuses_is_told_at_once():
    for name in ("gemma", "odd"):
        with pytest.raises(ModelError, match=r"refuses a system message .* set policy.system to null"):
            set_template(chat_tokenizer(name), PolicyConfig(model=name, system="Be brief."))


def test_a_conversation_that_the_template_refuses_is_named(tokenizers):
    twice = Conversation([{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}])
    with pytest.raises(DataError, match=r"refuses the conversation .*One.*must alternate"):
        prompt_ids(tokenizers["gemma"], [ASKED, twice])


def test_variables_are_put_into_the_template_and_may_be_overridden():
    tokenizer = chat_tokenizer("qwen3")
    policy = PolicyConfig(model="x", chat_template_kwargs={"enable_thinking": False})
    for _ in range(2):  # a folder that was saved with it is loaded again
        set_template(tokenizer, policy)
        without = rendered(chat_tokenizer("qwen3"), ASKED.messages, add_generation_prompt=True, enable_thinking=False)
        assert prompt_ids(tokenizer, [ASKED]) == [without]
    thinking = rendered(tokenizer, ASKED.messages, add_generation_prompt=True, enable_thinking=True)
    assert len(thinking) < len(without)
    assert training_ids(tokenizer, [ASKED.answered(ANSWER)])  # TRL's form of it is found all the same


def test_a_template_that_writes_todays_date_gets_the_recipes():
    tokenizer = chat_tokenizer("llama3_2")
    set_template(tokenizer, PolicyConfig(model="x", chat_date=date(2025, 3, 1)))
    assert "Today Date: 01 Mar 2025" in prompt_text(tokenizer, ASKED)
    assert "strftime_now" not in baked("{{ strftime_now('%Y') }}", {}, date(2025, 3, 1))


def test_a_template_of_the_recipe_brings_its_control_tokens_to_a_model_that_learns_them(tmp_path):
    folder = str(chat_folder(tmp_path / "model", "llama3"))
    policy = PolicyConfig(model=folder, chat_template="chatml", train=TrainConfig())
    tokenizer = policy_tokenizer(policy)
    assert control_tokens(policy.chat_template or "") == ["<|im_start|>", "<|im_end|>"]
    assert tokenizer.decode([turn_end(tokenizer)]) == "<|im_end|>"
    for refused, message in (
        ({"train": None}, "lacks <.im_start.>, <.im_end.>.* set policy.train"),
        ({"lora": LoraConfig()}, "LoRA learns no new tokens"),
    ):
        with pytest.raises(ModelError, match=message):
            policy_tokenizer(policy.model_copy(update=refused))


def test_a_template_file_is_read_once_and_goes_with_the_recipe(tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(template("qwen2_5"))
    policy = PolicyConfig(model="x", chat_template=str(file))
    file.unlink()
    assert PolicyConfig.model_validate(policy.model_dump()).chat_template == template("qwen2_5")
    with pytest.raises(RecipeError, match=r"chat_template: .*own.jinja can't be read .* \(chatml, smollm2\)"):
        PolicyConfig(model="x", chat_template=str(file))


def test_chat_off_is_plain_text(tmp_path):
    folder = str(chat_folder(tmp_path / "model"))
    assert policy_tokenizer(PolicyConfig(model=folder)).chat_template is not None
    assert policy_tokenizer(PolicyConfig(model=folder, chat="off")).chat_template is None
    with pytest.raises(RecipeError, match="chat is off, so system"):
        PolicyConfig(model=folder, chat="off", system="Be brief.")


def test_a_broken_template_is_refused_at_once():
    tokenizer = chat_tokenizer("qwen2_5")
    broken = PolicyConfig(model="x", chat_template="{% for m in messages %}{{ m.nothing.there }}{% endfor %}")
    with pytest.raises(ModelError, match=r"policy.chat_template can't be used"):
        set_template(tokenizer, broken)


def test_prompts_in_a_template_of_the_recipe_and_one_of_the_tokenizer_are_too_many():
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "data": {"prompts": {"dataset": "x", "template": "Q: {query}"}},
            "policy": {"model": "x"},
            "reward": {"kind": "function", "function": "a:b"},
            "generation": GenerationConfig(max_new_tokens=4).model_dump(),
        }
    )
    rows = Dataset.from_dict({"query": ["Hello"], "prompt": ["Hello"]})
    with pytest.raises(RecipeError, match=r"data.prompts.template .* set it to null"):
        tokenize_prompts(rows, recipe, chat_tokenizer("qwen2_5"), 64)


def test_sampling_ends_at_every_end_of_the_generation_config():
    from rlhf_lib.ppo.rollout import end_ids, sample_responses

    tokenizer = chat_tokenizer("qwen2_5")
    model = chat_model(tokenizer)
    assert end_ids(model, tokenizer) == {turn_end(tokenizer), tokenizer.eos_token_id}
    model.lm_head.weight.data.zero_()  # every token is as likely as any other
    sampled = sample_responses(
        model, tokenizer, prompt_ids(tokenizer, [ASKED] * 64), GenerationConfig(max_new_tokens=160), seed=0
    )
    last = {ids[-1] for ids, ended in zip(sampled.response_ids, sampled.ended, strict=True) if ended}
    assert last == end_ids(model, tokenizer)
    for ids, text, ended in zip(sampled.response_ids, sampled.texts, sampled.ended, strict=True):
        assert text == tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True).strip()
