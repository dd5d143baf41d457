"""promote, rollback, models and chat on a real MLflow store, with tiny policies."""

import io
import socket

import mlflow
import pytest
import yaml
from registered import letters, load, make_recipe, own_store, policy_folders, register  # noqa: F401
from tiny_models import one_thread  # noqa: F401

from flows import cli
from rlhf_lib.ppo.rollout import sample_responses
from tasks.registry import champions
from tasks.registry.versions import registered


@pytest.fixture
def versions(store, folders):
    """Three versions of `letters`: the gates made 1 and 2 champion, and refused 3."""
    recipe = make_recipe(data={"prompts": {"dataset": "local", "template": "{query}"}})
    text = yaml.safe_dump(recipe.model_dump(mode="json"))
    mlflow.log_text(text, "recipe.yaml")
    for ppo, folder in enumerate(("plain", "lettered", "lettered")):
        register(store, folders, folders[folder], recipe, ppo=str(ppo), model=folders["plain"])
    assert champion() == "2"
    return store


def champion():
    return str(mlflow.MlflowClient().get_registered_model("letters").aliases["champion"])


def version(number):
    return mlflow.MlflowClient().get_model_version("letters", number)


def test_several_rollbacks_and_what_they_leave(versions, capsys):
    assert cli.main(["promote", "letters", "3", "--why", "the customer asked"]) == 0
    assert "version 3 promoted by hand, version 2 before it: the customer asked" in capsys.readouterr().out
    assert champion() == "3"
    assert cli.main(["rollback", "letters", "--why", "it curses"]) == 0
    assert "rolled back from version 3 to 2: it curses" in capsys.readouterr().out
    assert champion() == "2"
    assert cli.main(["rollback", "letters"]) == 0
    assert champion() == "1"
    assert cli.main(["rollback", "letters"]) == 2
    assert "no champion before it on record" in capsys.readouterr().err
    assert champion() == "1"

    assert "it curses" in version("3").tags["audit"]
    assert "no reason given" in version("1").tags["audit"]
    assert version("3").tags["promoted"] == "false"  # what the gates said stays
    assert version("3").tags["reason"].startswith("beats_champion")
    lines = version("3").description.splitlines()
    assert "rolled back from version 3 to 2: it curses" in lines[0]
    assert "promoted by hand" in lines[2]
    assert "Not promoted: beats_champion" in version("3").description
    found = [(c.how, c.before, c.version) for c in champions.history("letters")]
    assert found == [
        ("gates", None, "1"),
        ("gates", "1", "2"),
        ("promoted", "2", "3"),
        ("rolled back", "3", "2"),
        ("rolled back", "2", "1"),
    ]
    assert all(c.who and c.when.endswith("Z") for c in champions.history("letters"))
    # a promotion after that leads back to where it came from
    champions.promote("letters", "3")
    assert champions.rollback("letters").version == "1"


def test_an_alias_moved_elsewhere_and_a_version_that_is_gone(versions):
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("letters", "champion", "3")  # on MLflow's page
    assert champions.line("letters") == ["1", "2", "3"]
    client.delete_model_version("letters", "2")
    assert champions.rollback("letters").version == "1"
    assert champions.line("letters") == ["1"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["promote", "letters", "9"], "letters has no version 9: it has 1, 2, 3"),
        (["promote", "letters", "2"], "version 2 of letters is already the champion"),
        (["promote", "nobody", "1"], "there is no registered model named nobody: the registry has letters"),
        (["rollback", "nobody"], "there is no registered model named nobody: the registry has letters"),
        (["models", "nobody"], "there is no registered model named nobody: the registry has letters"),
        (["chat", "nobody"], "nobody is not a registered model"),
        (["serve", "nobody"], "there is no registered model named nobody: the registry has letters"),
        (["playground", "nobody"], "there is no registered model named nobody: the registry has letters"),
        (["playground", "letters/9"], "letters has no version 9"),
    ],
)
def test_mistakes_change_nothing(versions, words, error, capsys):
    assert cli.main(words) == 2
    assert error in capsys.readouterr().err
    assert champion() == "2"


def test_models_lists_versions_with_figures_and_reasons(versions, capsys):
    champions.promote("letters", "1", "to see it listed")
    assert cli.main(["models", "letters"]) == 0
    name, header, *lines = capsys.readouterr().out.splitlines()
    assert name == "letters"
    assert header.split()[:2] == ["VERSION", "ALIASES"]
    rows = {line.split()[0]: line for line in lines if line[:1].isdigit() and line.split()[0] in "123"}
    assert "challenger" in rows["3"]
    assert "+0.5 [+0.3, +0.7], 256 prompts" in rows["3"]
    assert "20 -> 30" in rows["3"]
    assert "0.8 -> 0.6" in rows["3"]
    assert "champion" in rows["1"]
    assert "promoted by hand" in " ".join(lines)
    assert (
        len([line for line in lines if "version 1 promoted by hand, version 2 before it: to see it listed" in line])
        == 1
    )
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().out.startswith("letters\n")


@pytest.mark.parametrize(
    "words", [["serve", "letters"], ["chat", "letters"], ["playground"], ["promote", "letters", "1"], ["models"]]
)
def test_where_nothing_ever_ran_no_registry_is_made(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow, "get_registry_uri", lambda: f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert cli.main(words) == (0 if words == ["models"] else 2)
    said = "".join(capsys.readouterr())
    assert f"nothing is registered yet ({tmp_path}/runs/mlflow.db doesn't exist): rlhf run RECIPE first" in said
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_named_before_anything_is_loaded(versions, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", "letters", "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"rlhf: error: port {port} of 127.0.0.1 is taken: choose another with --port\n"


def test_models_of_an_empty_registry(store, capsys):
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().out.startswith("nothing is registered yet")
    assert cli.main(["models", "embedded"]) == 2
    assert "no registered model named embedded: the registry is empty: run a recipe first" in capsys.readouterr().err
    assert cli.main(["playground"]) == 2
    assert capsys.readouterr().err == "rlhf: error: nothing is registered yet: rlhf run RECIPE makes a version\n"


def test_a_slip_of_the_pen_is_told_and_long_registries_are_read_to_their_end(store, capsys):
    client = mlflow.MlflowClient()
    for number in range(101):  # more than a page of MLflow's
        client.create_registered_model(f"model-{number:03}")
    assert len(registered()) == 101
    assert cli.main(["models", "modle-007"]) == 2
    error = capsys.readouterr().err
    assert "no registered model named modle-007: did you mean model-007? the registry has model-000, " in error
    assert error.endswith("model-009 and 91 more\n")


def test_chat_answers_as_the_two_models_sample(versions, folders, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nhello\n"))
    assert cli.main(["chat", "letters"]) == 0
    expected = []
    for turn in (0, 1):
        for name, folder in (("letters 2", "lettered"), ("reference", "plain")):
            model, tokenizer = load(folders[folder])
            ids = [tokenizer("hello").input_ids]
            text = sample_responses(model, tokenizer, ids, make_recipe().generation, seed=0, step=turn).texts[0]
            expected.append(f"{name} ({letters([], [text])[0]:.3g}): {text.strip()}")
    assert capsys.readouterr().out == "\n".join(expected) + "\n"


def test_chat_with_dialogues_wraps_what_is_typed(versions, folders):
    from tasks.registry.chat import Chat

    talk = Chat(
        "models:/letters/1", overrides=["data.prompts.query.kind=dialogue", "data.prompts.template='[{query}]'"]
    )
    assert "letters 1 and reference answer" in talk.about
    [own, reference] = talk.answer("please help me now. " * 30)
    assert own.score is None
    assert "there is room for 1 to 112" in own.text
    assert str(reference).startswith("reference: (a prompt of")
    model, tokenizer = load(folders["plain"])
    prompt = [tokenizer("[\n\nHuman: hi\n\nAssistant:]").input_ids]
    expected = sample_responses(model, tokenizer, prompt, make_recipe().generation, seed=0, step=1).texts[0]
    assert talk.answer("hi", 1)[0].text == talk.answer("\n\nHuman: hi\n\nAssistant:", 1)[0].text == expected


def test_chat_goes_on_without_what_is_gone(versions):
    from tasks.registry.chat import Chat

    mlflow.MlflowClient().set_model_version_tag("letters", "2", "reference", "/nowhere/model")
    talk = Chat("letters", overrides=["reward.function=tests.tasks.test_registration:nothing"])
    assert list(talk.said) == ["letters 2"]
    assert "not scored" in talk.about
    assert "/nowhere/model" in talk.about
    assert "has no function nothing" in talk.about
    assert [answer.score for answer in talk.answer("hello")] == [None]
