"""`rlhf annotate` and `rlhf annotators`: rounds and rankings in and out of a database, accounts."""

import io
import json
import re
import socket

import httpx
import pytest
from annotate_server import annotate_server
from annotated import annotated

from flows.cli import main
from rlhf_lib.data.rankings import consensus
from rlhf_lib.recipe import RankingsConfig
from tasks.annotation import accounts, overview
from tasks.annotation.database import Database, sqlite_url

TASK = {
    "id": "t",
    "prompt": "Name a bird.",
    "responses": [{"id": "a", "text": "A robin."}, {"id": "b", "text": "A trout."}],
}


@pytest.fixture
def url(tmp_path):
    return sqlite_url(tmp_path / "annotation.db")


def write(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_round_is_opened_filled_and_exported(tmp_path, url, capsys):
    tasks = write(tmp_path / "birds.jsonl", TASK)
    rankings = write(tmp_path / "r.jsonl", {"id": "t", "annotator": "x", "ranking": ["a", "b"]}, {"id": "u"})
    fields = {"prompt": "Name a fish.", "one": "A trout.", "two": "A robin."}
    argilla = tmp_path / "argilla.json"
    argilla.write_text(
        json.dumps([{"fields": fields, "responses": {"q": [{"user_id": "u", "value": ["one", "two"]}]}}])
    )
    out = str(tmp_path / "out")
    command = [
        "annotate",
        tasks,
        "--annotators",
        "2",
        "--import",
        rankings,
        str(argilla),
        "--export",
        out,
        "--database",
        url,
    ]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "opened round 1, birds" in said.out
    assert "r.jsonl: 1 rankings taken, 0 were there already" in said.out
    assert "r.jsonl, line 2: unknown id" in said.err
    files = {
        name: [f"{out}/round-1/{name}.jsonl", f"{out}/round-2/{name}.jsonl"] for name in ("tasks", "rankings")
    }  # fmt: skip
    found = consensus.gather(RankingsConfig.model_validate(files))
    assert sorted((pair.prompt, pair.chosen, pair.rejected) for pair in found.pairs) == [
        ("Name a bird.", "A robin.", "A trout."),
        ("Name a fish.", "A trout.", "A robin."),
    ]
    assert main(command) == 0
    assert "there is already round 1, birds" in (again := capsys.readouterr().out)
    assert again.count("0 rankings taken, 1 were there already") == 2
    assert [row.rankings for row in overview.rounds(Database(url))] == [1, 1]


def test_accounts(url, capsys, monkeypatch):
    def said(*words: str) -> str:
        assert main(["annotators", *words, "--database", url]) == 0
        return capsys.readouterr().out

    added = said("add", "ann", "--url", "http://127.0.0.1:4401/")
    password = re.search(r"^password  (\S+)$", added, re.M)[1]
    token = re.search(r"^link      http://127.0.0.1:4401/login/(\S+)  \(seven days\)$", added, re.M)[1]
    database = Database(url)
    assert accounts.by_password(database, "ann", password).role == "annotator"
    assert accounts.by_link(database, token).name == "ann"
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
    assert "correct horse" not in said("add", "boss", "--owner", "--password-stdin")
    assert accounts.by_password(database, "boss", "correct horse").role == "owner"
    assert password not in said("reset", "ann")
    said("remove", "ann")
    assert said("list").split() == ["ann", "annotator", "no", "login", "boss", "owner"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["annotate", "--export", "out"], "there is no round to export"),
        (["annotate", "none.jsonl"], "none.jsonl can't be read"),
        (["annotate", "--import", "r.jsonl"], "there is no round of its tasks"),
        (["annotators", "add"], "needs a name"),
        (["annotators", "reset", "nobody"], "there is no account nobody"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(words, why, url, capsys):
    assert main([*words, "--database", url]) == 2
    assert why in capsys.readouterr().err


def test_a_password_belongs_into_the_environment(url, monkeypatch, capsys):
    assert main(["annotators", "list", "--database", "postgresql://me:secret-word@127.0.0.1/a"]) == 2
    assert "secret-word" not in capsys.readouterr().err
    monkeypatch.setenv("RLHF_ANNOTATION_DATABASE", url)
    assert main(["annotators", "add", "ann"]) == 0
    assert accounts.listed(Database(url))[0].name == "ann"


def test_the_server_is_for_this_machine_and_says_where_it_is(tmp_path):
    annotated(tmp_path, 2).close()
    with annotate_server(tmp_path) as server:
        assert f"pages on {server.url} until Ctrl-C" in server.log()
        assert "round 1, round: 2 tasks, 0 of 4 rankings" in server.log()
        with httpx.Client(base_url=server.url) as boss:
            assert boss.get(server.link("boss")).headers["location"] == "/"
            assert "0 of 4" in boss.get("/owner").text
        assert server.end() == 0
    assert "Traceback" not in server.log()
    assert "GET" not in server.log()  # no log of requests: their paths hold login links


def test_a_port_in_use_is_named(tmp_path, url, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["annotate", "--database", url, "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another port" in capsys.readouterr().err
