"""`rlhf annotate` in a real browser: ranking by keys and by mouse, undo, two people at once, a lost connection, the
owner's pages, and answers that try to run something. Behind `make test-browser`.

RLHF_SCREENSHOTS=docs/img keeps the picture of docs/rankings.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from annotate_server import annotate_server
from annotated import PASSWORD
from operated import CHROMIUM, FLAGS, SIZE, keep, settled

from rlhf_lib.data.rankings import consensus
from rlhf_lib.recipe import RankingsConfig
from tasks.annotation import accounts, exchange
from tasks.annotation.database import Database

ATTACK = (
    "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'> [link](javascript:window.hit=3) "
    "<a href='javascript:window.hit=4'>anchor</a> {{ 7 * 7 }} </div><svg onload='window.hit = 5'>"
)
PHONE: Any = {"width": 390, "height": 844}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", name="chromium")
def a_browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def server(tmp_path) -> Iterator[Any]:
    """Ten tasks, of four answers and of two by turns, for two people each; the first is full of attacks."""
    rows = []
    for n in range(10):
        answers = [f"Answer {key} to question {n}." for key in ("abcd" if n % 2 == 0 else "ab")]
        prompt = f"\n\nHuman: Question {n}?\n\nAssistant:"
        if n == 0:
            prompt, answers[1] = f"\n\nHuman: {ATTACK}\n\nAssistant: {ATTACK}\n\nHuman: And?\n\nAssistant:", ATTACK
        responses = [{"id": "abcd"[place], "text": text} for place, text in enumerate(answers)]
        rows.append(
            {"id": f"t{n}", "prompt": prompt, "responses": responses, "criterion": "helpful", "policy": "hidden"}
        )
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with annotate_server(tmp_path, str(tasks), "--annotators", "2") as running:
        database = Database(running.database)
        for name in ("ann", "ben"):
            accounts.add(database, name, password=PASSWORD)
        running.kept = lambda: exchange.judgements(database, 1)
        yield running
        database.close()


class Desk:
    """Somebody in a browser of their own. Whatever runs that shouldn't is noted."""

    def __init__(self, chromium: Any, url: str, **options: Any) -> None:
        self.context = chromium.new_context(**{"viewport": SIZE, **options})
        self.page, self.faults = self.context.new_page(), []
        self.page.set_default_timeout(60_000)
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.url = url

    def log_in(self, name: str) -> Desk:
        self.page.goto(f"{self.url}/login")
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url("**/rank")
        return self

    def ready(self) -> dict[str, Any]:
        """What the shown task's script was told, once it runs."""
        self.page.wait_for_selector("#work[data-ready]")
        return json.loads(self.page.locator("#work").get_attribute("data-task"))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def next(self, do: Any) -> None:
        """Do what leads to another page, and wait for it."""
        with self.page.expect_navigation():
            do()

    def judged(self) -> int:
        return int(self.page.locator("#judged").inner_text())

    def unharmed(self) -> None:
        assert self.page.evaluate("window.hit") is None
        assert self.faults == []


def test_ten_tasks_by_keys_and_by_mouse_by_two_at_once(server, chromium, tmp_path):
    ann, ben = Desk(chromium, server.url).log_in("ann"), Desk(chromium, server.url).log_in("ben")
    for number in range(10):  # by turns: both have a task in hand all the time
        for desk, work in ((ann, by_keys), (ben, by_mouse)):
            told = desk.ready()
            assert desk.judged() == number
            desk.unharmed()
            work(desk, told)
    for desk in (ann, ben):
        desk.page.get_by_text("nothing is left to rank").wait_for()
    kept = server.kept()
    assert sorted((one.account.name, one.task.key) for one in kept) == sorted(
        (name, f"t{n}") for name in ("ann", "ben") for n in range(10)
    )
    wanted = {"a": 1, "b": 2, "c": 2, "d": 3}
    for one in kept:
        assert one.ranks == (wanted if len(one.ranks) == 4 else {"a": 1, "b": 2}), one.account.name
        assert one.seconds >= 0

    boss = Desk(chromium, server.url)
    boss.page.goto(server.link("owner"))
    boss.page.get_by_role("link", name="tasks", exact=True).click()
    boss.page.get_by_text("20 / 20").wait_for()
    shown = boss.page.locator("main").inner_text()
    assert "1.00\nKrippendorff" in shown  # they ranked alike
    assert "flagged\n" not in shown
    files = {}
    for name in ("tasks", "rankings"):
        with boss.page.expect_download() as download:
            boss.page.get_by_role("link", name=f"{name}.jsonl").click()
        files[name] = [str(tmp_path / f"got-{name}.jsonl")]
        download.value.save_as(files[name][0])
    found = consensus.gather(RankingsConfig.model_validate(files))
    assert (found.alpha, found.rejected, len(found.pairs)) == (1.0, [], 5 * 5 + 5)
    boss.unharmed()


def by_keys(desk: Desk, told: dict[str, Any]) -> None:
    letters = {key: letter for letter, key in told["keys"].items()}
    if len(letters) == 2:
        desk.press(letters["a"].lower())
    elif told["task"] % 4 == 1:  # the answers in the order of their quality, equal ones with Shift
        desk.press(letters["a"].lower(), letters["b"].lower(), f"Shift+{letters['c']}", letters["d"].lower())
    else:  # to each answer its rank
        desk.press("ArrowRight")
        desk.press(*(str({"a": 1, "b": 2, "c": 2, "d": 3}[key]) for key in told["keys"].values()))
    desk.next(lambda: desk.press("Enter"))


def by_mouse(desk: Desk, told: dict[str, Any]) -> None:
    letters, page = {key: letter for letter, key in told["keys"].items()}, desk.page

    def card(key: str) -> Any:
        return page.locator(f".answer[data-letter='{letters[key]}']")

    if len(letters) == 2:
        page.get_by_role("button", name=f"{letters['a']} is better").click()
    else:
        for key, rank in (("a", 1), ("b", 2), ("c", 2), ("d", 3)):
            if key in "ab":
                card(key).get_by_role("button", name=str(rank), exact=True).click()
            else:
                drag(page, card(key).locator(".letter"), page.locator(f".tier[data-tier='{rank}']"))
    desk.next(lambda: page.get_by_role("button", name="Submit").click())


def drag(page: Any, what: Any, onto: Any) -> None:
    what.scroll_into_view_if_needed()
    start, end = what.bounding_box(), onto.bounding_box()
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=5)
    page.mouse.up()


def test_undo_skip_comment_and_all_bad_by_keys_alone(server, chromium):
    ann = Desk(chromium, server.url).log_in("ann")
    first = ann.ready()["task"]
    ann.press("x", "m")
    ann.page.keyboard.type("x is a letter here")
    ann.next(lambda: ann.press("Control+Enter"))
    assert ann.ready()["task"] != first
    ann.next(lambda: ann.press("u"))
    told = ann.ready()
    assert (told["task"], ann.judged()) == (first, 0)
    assert ann.page.locator("#comment").input_value() == "x is a letter here"
    assert ann.page.locator("#bad").get_attribute("aria-pressed") == "true"
    ann.press("s")
    ann.next(lambda: ann.press("2"))
    ann.ready()
    ann.press("s")
    ann.page.get_by_label("Another reason").focus()
    ann.page.keyboard.type("too long for me")
    ann.next(lambda: ann.press("Enter"))
    ann.ready()
    assert [(one.kind, one.reason) for one in server.kept()] == [
        ("skip", "The prompt makes no sense"),
        ("skip", "too long for me"),
    ]
    ann.press("?")
    ann.page.get_by_role("heading", name="Keys").wait_for()
    ann.press("Escape")
    ann.unharmed()


def test_a_lost_connection_and_a_second_tab_count_once(server, chromium):
    ann = Desk(chromium, server.url).log_in("ann")
    tab = ann.context.new_page()
    tab.goto(f"{server.url}/rank")
    tab.wait_for_selector("#work[data-ready]")
    told = ann.ready()
    ann.press("x")
    ann.context.set_offline(True)
    ann.press("Enter")
    ann.page.get_by_text("Not saved yet").wait_for()
    assert server.kept() == []
    ann.next(lambda: ann.context.set_offline(False))
    assert ann.ready()["task"] != told["task"]
    tab.keyboard.press("x")
    tab.keyboard.press("Enter")
    tab.get_by_text("judged this one already").wait_for()
    assert [one.task_id for one in server.kept()] == [told["task"]]
    # closed while it wasn't saved: the next page sends it
    now = ann.ready()
    ann.press("x")
    ann.context.set_offline(True)
    ann.press("Enter")
    ann.page.get_by_text("Not saved yet").wait_for()
    ann.page.close()
    ann.context.set_offline(False)
    tab.goto(f"{server.url}/rank")
    settled(lambda: len(server.kept()) == 2, "what was left", 30, 0.1)
    assert [one.task_id for one in server.kept()] == [told["task"], now["task"]]


def test_a_phone_has_everything_in_reach(server, chromium):
    ann = Desk(chromium, server.url, viewport=PHONE, has_touch=True, is_mobile=True).log_in("ann")
    page = ann.page
    for _ in range(2):
        told = ann.ready()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for button in page.locator("#work button:visible").all():
            assert button.bounding_box()["height"] >= 34
        if len(told["keys"]) == 2:
            page.get_by_role("button", name="A is better").tap()
        else:
            for place, letter in enumerate(told["keys"].keys(), 1):
                card = page.locator(f".answer[data-letter='{letter}']")
                card.get_by_role("button", name=str(place), exact=True).tap()
        ann.next(lambda: page.get_by_role("button", name="Submit").tap())
    ann.ready()
    assert len(server.kept()) == 2
    ann.unharmed()


def test_the_demo_is_there_in_seconds(chromium, tmp_path):
    with annotate_server(tmp_path, "--demo") as demo:
        ann = Desk(chromium, demo.url, viewport={"width": 1100, "height": 900})
        ann.page.goto(demo.link("annotator"))
        letters = list(ann.ready()["keys"])
        ann.press(letters[1].lower(), letters[0].lower(), f"Shift+{letters[3]}")
        ann.page.locator(".tier[data-tier='2'] .chip").nth(1).wait_for()
        ann.page.get_by_text("Judge:").click()
        keep(ann.page, "annotate")
        ann.unharmed()
        assert demo.end() == 0
