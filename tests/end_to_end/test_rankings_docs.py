"""docs/rankings.md: its files are read and its report is what the command prints."""

import re
from pathlib import Path

import yaml

from flows import cli
from rlhf_lib.recipe import RankingsConfig

PAGE = (Path(__file__).parents[2] / "docs" / "rankings.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
    return ["".join(line.removeprefix(indent) for line in text.splitlines(keepends=True)) for indent, text in found]


def test_the_pages_files_give_the_pages_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tasks, rankings, thumbs = blocks("json")
    for name, text in (("tasks.jsonl", tasks), ("rankings.jsonl", rankings), ("thumbs.jsonl", thumbs)):
        Path(name).write_text(text)
    Path("rankings.csv").write_text(blocks("csv")[0])

    for command in re.findall(r"^    rlhf (rankings .*)$", PAGE, re.MULTILINE):
        assert cli.main(command.split()) == 0
    report, of_thumbs = capsys.readouterr().out.split("# Human feedback")[1:]
    assert "# Human feedback" + report == blocks("text")[0]
    assert "Pairs: from rankings 0, ties 0, thumbs tied 0, prompts with one thumb 0, from thumbs 1" in of_thumbs


def test_the_pages_recipe_is_one():
    first, rounds = blocks("yaml")
    assert RankingsConfig(**yaml.safe_load(first)["data"]["preferences"]["rankings"]).drop_flagged
    assert len(RankingsConfig(**yaml.safe_load(rounds)).rankings) == 3
