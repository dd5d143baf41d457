"""The playground in a real browser: three versions streamed, a conversation, a link, a blind vote that becomes a pair.
Behind `make test-browser`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from operated import ROOT, chromium  # noqa: F401
from registered import policy_folders  # noqa: F401
from registered_chat import chat_recipe
from registered_playground import a_registry  # noqa: F401
from tiny_models import one_thread  # noqa: F401

from rlhf_lib.data.preferences import load_preferences
from rlhf_lib.recipe import Recipe
from tasks.annotation import exchange, overview
from tasks.annotation.database import Database, sqlite_url

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CHAT = ["letters/2", "letters/1", "letters/1/reference"]


@contextmanager
def playground(registry: dict[str, str], folder: Path, *words: str) -> Iterator[tuple[Any, str]]:
    """`rlhf playground` as a person starts it, on a free port, until Ctrl-C: the process, and its first line."""
    database = sqlite_url(folder / "annotation.db")
    command = [sys.executable, "-m", "flows.cli", "playground", "--port", "0", "--database", database, *words]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    settings = os.environ | {"MLFLOW_TRACKING_URI": registry["store"], "PYTHONPATH": paths}
    server = subprocess.Popen(command, cwd=folder, env=settings, stdout=subprocess.PIPE, text=True)
    try:
        yield server, server.stdout.readline()
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=600) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory, registry) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("votes")
    with playground(registry, folder) as (_, said):
        address = re.fullmatch(r"The playground is on (http://127\.0\.0\.1:\d+) until Ctrl-C\.\n", said)
        assert address, said
        yield SimpleNamespace(url=address[1], file=folder / "annotation.db")


@pytest.fixture
def page(browser, served) -> Iterator[Any]:
    made = browser.new_page()
    faults: list[str] = []
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("console", lambda line: line.type == "error" and faults.append(line.text))
    yield made
    made.close()
    assert not faults


def choose(page: Any, models: list[str]) -> None:
    for box in page.locator("input[name=model]").all():
        box.set_checked(box.get_attribute("value") in models)


def ask(page: Any, prompt: str) -> Any:
    """Type it, and wait for the answers: the cards."""
    turns = page.locator(".turn").count()
    page.locator("#prompt").fill(prompt)
    page.keyboard.press("Enter")
    turn = page.locator(".turn").nth(turns)
    turn.wait_for()
    page.locator("#stop").wait_for(state="hidden")
    assert turn.locator(".answer[aria-busy=true]").count() == 0
    return turn.locator(".answer")


def texts(cards: Any) -> list[str]:
    return [card.locator(".text").inner_text() for card in cards.all()]


def test_three_versions_stream_and_go_on_with_what_they_said(served, page):
    page.goto(f"{served.url}/playground")
    choose(page, CHAT)
    # what each card showed at any time, kept by the page itself
    page.evaluate("""() => {
        window.shown = {};
        new MutationObserver(() => document.querySelectorAll(".turn .answer").forEach((card) => {
            (window.shown[card.dataset.model] ??= new Set()).add(card.querySelector(".text").textContent);
        })).observe(document.getElementById("turns"), { subtree: true, childList: true, characterData: true });
    }""")
    with page.expect_request("**/playground/answers") as first:
        cards = ask(page, "hello")
    assert [card.locator(".name").inner_text() for card in cards.all()] == [
        "letters 2",
        "letters 1",
        "reference of letters",
    ]
    grown = page.evaluate(
        "() => Object.fromEntries(Object.entries(window.shown).map(([id, texts]) => [id, texts.size]))"
    )
    assert set(grown) == set(CHAT)
    assert min(grown.values()) > 3  # they grew before one's eyes
    assert first.value.post_data_json["said"] == {}
    for card in cards.all():
        assert re.search(r"reward ?-?[\d.]+", card.locator(".figures").inner_text())
        assert re.search(r"judge brief ?-?[\d.]+", card.locator(".figures").inner_text())
    with page.expect_request("**/playground/answers") as second:
        later = ask(page, "and now?")
    said = second.value.post_data_json["said"]
    assert list(said) == CHAT
    assert len({messages[-1]["content"] for messages in said.values()}) == 3  # each its own
    assert all([m["role"] for m in messages] == ["system", "user", "assistant"] for messages in said.values())
    assert later.count() == 3

    again = page.context.new_page()  # the address restores models, prompts and seed: the same answers
    again.goto(page.url)
    again.locator(".turn").nth(1).locator(".figures .tag").nth(8).wait_for()
    again.locator("#stop").wait_for(state="hidden")
    for turn in range(2):
        shown = [texts(one.locator(".turn").nth(turn).locator(".answer")) for one in (page, again)]
        assert shown[0] == shown[1]
    again.close()


def test_a_link_restores_the_settings(served, page):
    settings = "seed=7&temperature=0.5&top_p=0.9&top_k=20&max_tokens=5&system=Be+rude."
    page.goto(f"{served.url}/playground?model=letters/1&model=plain/1&prompt=hello&{settings}")
    page.locator(".answer .figures .tag").first.wait_for()
    page.locator("#stop").wait_for(state="hidden")
    values = {
        name: page.locator(f"#{name}").input_value() for name in ("seed", "temperature", "top_p", "top_k", "system")
    }
    assert values == {"seed": "7", "temperature": "0.5", "top_p": "0.9", "top_k": "20", "system": "Be rude."}
    assert [box.get_attribute("value") for box in page.locator("input[name=model]:checked").all()] == [
        "letters/1",
        "plain/1",
    ]
    assert "5 tokens, cut off" in page.locator(".answer").first.inner_text()
    with page.expect_request("**/playground/answers") as asked:
        page.reload()
        page.locator(".answer .figures .tag").first.wait_for()
    sampling = asked.value.post_data_json["sampling"]
    assert sampling == {"seed": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 20, "max_tokens": 5}


def test_a_held_out_prompt_is_drawn(served, page):
    page.goto(f"{served.url}/playground")
    page.locator("#draw").click()
    page.locator("#send:enabled").wait_for()
    assert page.locator("#prompt").input_value().endswith(("hello", "\n\nAssistant:"))


def test_blind_votes_become_pairs(served, page, tmp_path):
    page.goto(f"{served.url}/playground")
    choose(page, CHAT)
    page.locator("#blind").check()
    won = {}
    for prompt, key in (("hello", "1"), ("where is my parcel?", "4")):
        cards = ask(page, prompt)
        assert [card.locator(".name").inner_text() for card in cards.all()] == ["Left", "Right"]
        assert "reward" not in cards.first.inner_text()
        page.locator(".votes").wait_for()
        page.keyboard.press(key)
        page.locator(".votes").wait_for(state="detached")
        names = [card.locator(".name").inner_text() for card in cards.all()]
        assert len(set(names)) == 2
        assert "reward" in cards.first.inner_text()
        won[prompt] = names[0 if key == "1" else 1]
    database = Database(sqlite_url(served.file))
    try:
        [of] = overview.rounds(database)
        files = exchange.export(database, of.id, tmp_path)
    finally:
        database.close()
    recipe = chat_recipe().model_dump(mode="json", exclude_unset=True)
    recipe["data"]["preferences"] = {"rankings": {"tasks": [str(files["tasks"])], "rankings": [str(files["rankings"])]}}
    pairs = load_preferences(Recipe.model_validate(recipe))
    tasks = [json.loads(line) for line in Path(files["tasks"]).read_text().splitlines()]
    policies = {row["text"].strip(): row["policy"] for task in tasks for row in task["responses"]}
    labels = {"letters/2": "letters 2", "letters/1": "letters 1", "letters/1/reference": "reference of letters"}
    rows = [*pairs.train, *pairs.test]
    assert {
        row["prompt"].split("Human: ")[1].split("\n")[0]: labels[policies[row["chosen"].strip()]] for row in rows
    } == won


def test_elsewhere_than_on_this_machine_people_log_in(registry, tmp_path):
    with playground(registry, tmp_path, "--host", "0.0.0.0") as (server, said):
        assert server.stdout.readline() == "Nobody can log in yet: rlhf annotators add NAME\n"
        port = re.search(r":(\d+) until Ctrl-C", said)[1]
        for path in ("/playground", "/playground/prompt?model=letters/1"):
            answer = httpx.get(f"http://127.0.0.1:{port}{path}")
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def test_on_a_phone_nothing_is_wider_than_the_screen(served, browser):
    page = browser.new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{served.url}/playground")
    ask(page, "hello")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert page.locator("#send").bounding_box()["y"] + 44 <= 844
    page.locator("#settings > summary").click()
    assert page.locator("#seed").is_visible()
    page.close()
