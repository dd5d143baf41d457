"""The how-tos do what they say: their files laid into a folder, their commands run there, their output compared.

Blocks by the word behind the fence: `title="NAME"` is a file; `sh` are commands that must succeed; `console` are
commands with the error that each ends with; `bash` needs terminals of its own, which tests/operations/test_docs_walk.py
has; `text` is shown, not run; other `yaml` is a part of the page's last recipe and must fit there. Models and data of
the hub are folders of their id here, tiny ones.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from hub_folders import lay_out_hub
from transformers import AutoModelForCausalLM

from flows import cli
from rlhf_lib.recipe import Recipe

DOCS = Path(__file__).parents[2] / "docs"
# tests/operations/test_postgres.py starts the servers of the one, test_library_docs.py runs the other
ELSEWHERE = {"production.md", "library.md"}
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    title: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Every fenced block of the page in its order; a fence that is written otherwise is an error."""
    text = (DOCS / page).read_text()
    found = [Block(*match.groups(default="")) for match in FENCE.finditer(text)]
    assert len(found) * 2 == text.count("\n```"), f"{page} has a fence that the test doesn't understand"
    return iter(found)


def commands(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(words: list[str]) -> int:
    if words[0] == "rlhf":
        return cli.main(words[1:])
    if words == [".", ".venv/bin/activate"]:
        return 0
    assert words[0] == "python", f"how is {words[0]} to be run?"
    return subprocess.run([sys.executable, *words[1:]], timeout=100).returncode


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with what the pages name of the hub."""
    lay_out_hub(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RLHF_RUN_DIR", str(tmp_path / "runs"))
    return tmp_path


@pytest.mark.parametrize("page", sorted({path.name for path in (DOCS / "how-to").glob("*.md")} - ELSEWHERE))
def test_a_how_to_runs_as_written(page, place, prefect_server, mlflow_store, capfd):
    with mlflow_store(place):
        follow(page, place, capfd)


def follow(page: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe: dict = {}
    for block in blocks(f"how-to/{page}"):
        if block.title:
            (place / block.title).write_text(block.text)
            if block.language == "yaml":
                recipe = yaml.safe_load(block.text)
        elif block.language == "sh":
            for words in commands(block.text):
                assert run(words) == 0, capfd.readouterr().err[-3000:]
        elif block.language == "console":
            asked = ""
            for line in block.text.splitlines():
                if line.startswith("$ "):
                    capfd.readouterr()
                    assert run(shlex.split(asked := line[2:])) == 2, asked
                else:
                    assert line in capfd.readouterr().err.splitlines(), asked
        elif block.language not in ("text", "bash"):
            assert block.language == "yaml", block
            part = yaml.safe_load(block.text)
            Recipe.model_validate(recipe | part | {"data": recipe["data"] | part.get("data", {})})


def test_a_recipe_of_ten_lines_has_ten():
    text = next(block.text for block in blocks("how-to/new-recipe.md") if block.title)
    assert len(text.splitlines()) == 10


def test_the_notebook_of_trl_0_11_runs_cell_by_cell(place):
    cells = [block.text for block in blocks("moving-from-trl.md") if block.language == "python"]
    namespace: dict = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), namespace)
    assert namespace["stats"]["tokens/responses_len_mean"] <= 16
    assert namespace["stats"]["objective/kl"] != 0  # the second of two steps
    assert AutoModelForCausalLM.from_pretrained("policy").config.vocab_size == len(namespace["tokenizer"])
