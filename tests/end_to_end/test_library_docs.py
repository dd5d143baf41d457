"""The library's documentation runs as printed: the README's snippet, and docs/how-to/library.md block by block."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall((ROOT / page).read_text()) if kind == language]


def run(cells: list[str]) -> dict:
    namespace: dict = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_readme_s_snippet_runs_and_learns(capsys):
    (snippet,) = blocks("README.md", "python")
    found = run([snippet])
    scores = [float(score) for score in re.findall(r"score ([\d.]+)", capsys.readouterr().out)]
    assert len(scores) == found["trainer"].config.steps
    assert max(scores[-3:]) > max(scores[:3]) + 1
    assert Path("policy/model.safetensors").is_file()


def test_the_how_to_runs_as_written_and_says_what_it_prints(capsys):
    found = run(blocks("docs/how-to/library.md", "python"))
    before, after = found["before"].stats, found["after"].stats
    assert before["eval/mean_scores"] < 0.8 < after["eval/mean_scores"]
    assert after["eval/correct"] > 0.5
    assert len(found["history"]) == 4
    said = capsys.readouterr().out.splitlines()[-3:]
    (promised,) = blocks("docs/how-to/library.md", "text")
    for line, shown in zip(said, promised.splitlines(), strict=True):
        assert re.fullmatch(re.escape(shown).replace(r"\.\.\.", ".*"), line), line
