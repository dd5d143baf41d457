"""`rlhf chat` with a chat policy: what was said stays, for each model what it said itself."""

import io

import mlflow
import pytest
from chat_models import chat_folder
from registered import letters, load, policy_folders  # noqa: F401
from registered_chat import SYSTEM, chat_recipe, one_chat_version  # noqa: F401
from tiny_models import one_thread  # noqa: F401

from flows import cli
from rlhf_lib.ppo.rollout import sample_responses
from tasks.registry import versions
from tasks.registry.chat import Chat


def sampled(folder, messages, turn):
    model, tokenizer = load(folder)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return sample_responses(model, tokenizer, [ids], chat_recipe().generation, seed=0, step=turn).texts[0]


def turns(folder, typed, system=SYSTEM, first=0):
    """The answers to a conversation, each given what was said before it."""
    messages, answers = [{"role": "system", "content": system}] if system else [], []
    for turn, line in enumerate(typed, first):
        messages.append({"role": "user", "content": line})
        answers.append(sampled(folder, messages, turn))
        messages.append({"role": "assistant", "content": answers[-1].strip()})
    return answers


def test_each_model_goes_on_with_what_it_said_itself(chat, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nand now?\n/new\nhello\n/system Be rude.\nhello\n"))
    assert cli.main(["chat", "letters"]) == 0
    folders = {"letters 1": chat, "reference": versions.reference_of(versions.named("letters"))}
    told = {name: turns(folder, ["hello", "and now?"]) for name, folder in folders.items()}
    anew = {name: turns(folder, ["hello"], first=2) for name, folder in folders.items()}
    rude = {name: turns(folder, ["hello"], "Be rude.", first=3) for name, folder in folders.items()}
    expected = [*(said(told, 0)), *said(told, 1), f"A new conversation after the system message: {SYSTEM}"]
    expected += [*said(anew, 0), "A new conversation after the system message: Be rude.", *said(rude, 0)]
    assert capsys.readouterr().out == "\n".join(expected) + "\n"


def said(answers, turn):
    texts = {name: lines[turn] for name, lines in answers.items()}
    return [f"{name} ({letters([], [text])[0]:.3g}): {text.strip() or '(empty)'}" for name, text in texts.items()]


def test_a_score_is_given_the_whole_conversation(chat):
    talk = Chat("letters")
    asked = []

    def reward(queries, responses):
        asked.extend(zip(queries, responses, strict=True))
        return [1.0 for _ in queries]

    talk.reward = reward
    [first, _] = talk.answer("hello")
    [second, _] = talk.answer("and now?", 1)
    query, response = asked[2]
    assert query.messages == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.text.strip()},
        {"role": "user", "content": "and now?"},
    ]
    assert (response, second.score) == (second.text, 1.0)
    assert asked[3][0].messages[2] != query.messages[2]  # the reference's own
    assert "/new starts a new conversation, /system TEXT one after that system message." in talk.about


def test_a_conversation_that_no_longer_fits_says_how_to_start_anew(chat):
    talk = Chat("letters")
    before = talk.answer("hello")
    for answer in talk.answer("please help me now. " * 20, 1):
        assert "\n" not in answer.text
        assert answer.text.startswith("(a conversation of ")
        assert answer.text.endswith(" tokens: there is room for 1 to 232; /new starts another)")
        assert answer.score is None
    assert [len(messages) for messages in talk.said.values()] == [3, 3]  # as it was
    assert talk.command("/new") == f"A new conversation after the system message: {SYSTEM}"
    assert talk.answer("hello") == before
    assert talk.command("/system") == "A new conversation."
    assert talk.answer("hello")[0].text == turns(chat, ["hello"], None)[0] != before[0].text
    assert talk.command("new") is talk.command("/news") is None


def test_a_folder_with_a_recipe(tmp_path, chat):
    """And a template that refuses the system message."""
    folder, file = str(chat_folder(tmp_path / "odd", "odd")), tmp_path / "odd.yaml"
    mlflow.artifacts.download_artifacts(run_id=versions.named("letters").tags["parent_run_id"], dst_path=str(tmp_path))
    file.write_text((tmp_path / "recipe.yaml").read_text().replace("model: tiny", f"model: {folder}"))
    talk = Chat(folder, str(file), ["policy.system=null"])
    [own, reference] = talk.answer("hello")
    assert own.text == reference.text == turns(folder, ["hello"], None)[0]
    talk.command("/system Be kind.")
    [own, _] = talk.answer("hello")
    told = "(the chat template refuses this: No system turns; /system alone leaves the system message out)"
    assert own.text == told
    plain = Chat(folder, str(file), ["policy.system=null", "policy.chat=off"])
    assert plain.command("/new") is None
    assert "/new" not in plain.about


@pytest.mark.parametrize("line", ["/new", "/system Be kind."])
def test_lines_are_no_commands_of_completion_models(chat, line):
    assert Chat("letters", overrides=["policy.chat=off", "policy.system=null"]).command(line) is None
