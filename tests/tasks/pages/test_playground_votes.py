"""Blind comparisons in the playground, whose votes become pairs; and who may ask at all."""

import json
import re
from pathlib import Path

import pytest
from asked_playground import CHAT, a_browser, answers, asked, database_of_votes, events, sampled, the_application  # noqa: F401
from fastapi.testclient import TestClient
from registered import letters, policy_folders  # noqa: F401
from registered_chat import SYSTEM, chat_recipe
from registered_playground import a_registry  # noqa: F401
from tiny_models import one_thread  # noqa: F401

from rlhf_lib.data.preferences import load_preferences
from rlhf_lib.recipe import Recipe
from tasks.annotation import accounts, exchange, overview
from tasks.annotation.database import Database, sqlite_url
from tasks.pages.playground_server import application
from tasks.registry.champions import user


def test_where_a_login_is_needed_everybody_logs_in(registry, tmp_path):
    database = Database(sqlite_url(tmp_path / "annotation.db"))
    accounts.add(database, "Ada", password="a long password")
    with TestClient(application(database, login=True), base_url="http://127.0.0.1") as client:
        assert client.get("/playground", follow_redirects=False).headers["location"] == "/login"
        assert client.get("/playground/prompt?model=letters/1", follow_redirects=False).status_code == 303
        csrf = re.search(r'name="csrf" content="([^"]+)"', client.get("/login").text)[1]
        question = {"models": ["letters/1"], "prompt": "hello"}
        refused = client.post("/playground/answers", json=question, headers={"X-CSRF-Token": csrf})
        assert refused.status_code == 401
        told = client.post("/login", data={"csrf": csrf, "name": "Ada", "password": "a long password"})
        assert told.url.path == "/playground"
        assert '<span title="annotator">Ada</span>' in told.text
    database.close()


def duel_of(client, prompt="hello", **more):
    told = events(client, CHAT, prompt, blind=True, **more)
    assert "letters" not in json.dumps(told)
    shown = answers(told, 2)
    assert all(last["scores"] is None and last["said"] is None for _, last in shown)
    return told[-1], [text for text, _ in shown]


def test_a_blind_vote_becomes_a_pair(registry, client, database, tmp_path):
    votes, chosen = {}, ["left", "right", "tie", "bad"]
    for seed, choice in enumerate(chosen):
        prompt = "and now?" if choice == "right" else "hello"
        duel, texts = duel_of(client, prompt, sampling={"seed": seed})
        assert duel["why"] is None
        kept = client.post("/playground/votes", json={"duel": duel["duel"], "choice": choice, "seconds": 2.5}).json()
        assert set(kept["models"]) < set(CHAT)
        for id, text, scores in zip(kept["models"], texts, kept["scores"], strict=True):
            assert text == sampled(registry[id], asked(prompt), seed=seed).texts[0]
            assert scores["reward"] == pytest.approx(letters([], [text])[0])
        again = client.post("/playground/votes", json={"duel": duel["duel"], "choice": "right"}).json()
        assert again == kept
        votes[choice] = (kept["models"], texts)
    [of] = overview.rounds(database)
    files = exchange.export(database, of.id, tmp_path)
    rankings = [json.loads(line) for line in Path(files["rankings"]).read_text().splitlines()]
    assert [row["annotator"] for row in rankings] == [user()] * 4
    assert [sorted(row["ranks"].values()) for row in rankings] == [[1, 2], [1, 2], [1, 1], [1, 1]]
    assert [row.get("all_bad", False) for row in rankings] == [False, False, False, True]
    tasks = [json.loads(line) for line in Path(files["tasks"]).read_text().splitlines()]
    policies = {row["text"]: row["policy"] for row in tasks[0]["responses"]}
    assert policies == dict(zip(votes["left"][1], votes["left"][0], strict=True))
    pairs = preferences(files)
    found = {row["prompt"]: (row["chosen"].strip(), row["rejected"].strip()) for row in pairs}
    left, right = ([text.strip() for text in votes[choice][1]] for choice in ("left", "right"))
    told = f"\n\nSystem: {SYSTEM}\n\nHuman: {{}}\n\nAssistant:"
    assert found == {told.format("hello"): (left[0], left[1]), told.format("and now?"): (right[1], right[0])}


def preferences(files):
    rankings = {"tasks": [str(files["tasks"])], "rankings": [str(files["rankings"])]}
    recipe = chat_recipe().model_dump(mode="json", exclude_unset=True)
    recipe["data"]["preferences"] = {"rankings": rankings}
    found = load_preferences(Recipe.model_validate(recipe))
    return [*found.train, *found.test]


def test_a_look_at_the_names_is_no_vote(client, database):
    before = [of.rankings for of in overview.rounds(database)]
    duel, _ = duel_of(client, sampling={"seed": 50})
    shown = client.post("/playground/votes", json={"duel": duel["duel"], "choice": "none"}).json()
    assert len(shown["models"]) == 2
    late = client.post("/playground/votes", json={"duel": duel["duel"], "choice": "left"})
    assert late.json() == shown
    assert [of.rankings for of in overview.rounds(database)] == before
    unknown = client.post("/playground/votes", json={"duel": "nobody", "choice": "left"})
    assert (unknown.status_code, unknown.json()["detail"][:28]) == (404, "The server no longer knows t")


@pytest.mark.parametrize(
    ("models", "sampling", "why"),
    [
        (["letters/1", "plain/1"], {}, "their recipes ask them in different words"),
        (["letters/2", "letters/1"], {"max_tokens": 1, "temperature": 0}, None),
    ],
)
def test_what_can_be_no_pair_has_no_vote(client, models, sampling, why):
    told = events(client, models, blind=True, sampling=sampling)
    last = told[-1]
    assert why is None or last["why"] == why
    if last["why"]:
        refused = client.post("/playground/votes", json={"duel": last["duel"], "choice": "left"})
        assert (refused.status_code, last["why"] in refused.json()["detail"]) == (422, True)
