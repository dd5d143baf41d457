"""The command line: quick, and what it prints can be used."""

import subprocess
import sys

import pytest
import yaml

from flows import cli
from flows.cli.tables import next_commands
from rlhf_lib.recipe import load_recipe, shipped


def test_help_names_every_command():
    help_text = subprocess.run([sys.executable, "-m", "flows.cli", "--help"], capture_output=True, text=True).stdout
    assert all(command in help_text for command in ("run", "recipes", "show", "ui"))


def test_recipes_lists_what_is_shipped(capsys):
    assert cli.main(["recipes"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["RECIPE", "MODELS", "HARDWARE", "TIME"]
    assert [line.split()[0] for line in lines if line[0] != " "] == shipped()
    assert max(map(len, lines)) <= 120
    words = " ".join(lines).split()
    for recipe in map(load_recipe, shipped()):
        about = recipe.about
        assert all((about.models, about.hardware, about.time)), f"{recipe.name}: its section about is incomplete"
        start = words.index(recipe.name)
        assert set(f"{about.models} {about.hardware} {about.time}".split()) <= set(words[start : start + 60])
        assert recipe.description in " ".join(words)


@pytest.mark.parametrize("name", shipped())
def test_what_show_prints_is_the_whole_recipe_again(name, capsys, tmp_path):
    assert cli.main(["show", name, "--set", "ppo.steps=7", "--set", "generation.stop='\\n'"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["ppo"]["gamma"] == 1.0  # a default
    (tmp_path / "mine.yaml").write_text(printed)
    again = load_recipe(str(tmp_path / "mine.yaml"))
    assert again == load_recipe(name, ["ppo.steps=7", "generation.stop='\\n'"])
    assert (again.ppo.steps, again.generation.stop) == (7, "\\n")


@pytest.mark.parametrize(("arguments", "word"), [([], "COMMAND"), (["run"], "recipe"), (["fly"], "fly")])
def test_a_wrong_command_line_shows_the_usage(arguments, word, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: rlhf")
    assert word in error


def test_a_run_ends_with_the_commands_that_come_next(tmp_path, monkeypatch):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    command = tmp_path / ".venv/bin/rlhf"
    command.touch(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    record = {"model": {"name": "letters", "version": "3", "promoted": True}}

    def printed(folder, path):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PATH", path)
        return [line.split("  #")[0].rstrip() for line in next_commands(record).splitlines()]

    champion = ["rlhf chat letters", "rlhf serve letters"]
    assert printed(tmp_path, "/nowhere") == [". .venv/bin/activate", *champion]
    assert printed("/", "/nowhere") == [f". {str(tmp_path)[1:]}/.venv/bin/activate", *champion]
    assert printed(command.parent, "/nowhere") == [f". {tmp_path}/.venv/bin/activate", *champion]
    assert printed(tmp_path, str(command.parent)) == champion
    record["model"]["promoted"] = False
    assert printed(tmp_path, str(command.parent)) == ["rlhf chat letters/3", "rlhf serve letters/3"]
    record["model"] = None
    assert printed(tmp_path, str(command.parent)) == []
