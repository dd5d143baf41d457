"""Who gets where: nobody without a login, no annotator to the owner's pages or another's rankings; forged requests."""

import re

import pytest
from annotated import PASSWORD, URL, Person, annotated, task_of
from fastapi.testclient import TestClient

from tasks.annotation import accounts, exchange
from tasks.pages import security
from tasks.pages.app import create_app

RANKS = {"a": 1, "b": 3, "c": 3}
OPEN = {"/login", "/login/{token}", "/health", "/static"}


def routes(app) -> set[tuple[str, str]]:
    """(method, path) of all that the application answers."""
    found = set()
    for part in app.routes:
        for route in getattr(getattr(part, "original_router", None), "routes", [part]):
            found |= {(method, route.path) for method in getattr(route, "methods", None) or () if method != "HEAD"}
    return found


def filled(path: str) -> str:
    return re.sub(r"\{name\}", "rankings", re.sub(r"\{(of|whose)\}", "1", path))


def test_every_page_but_the_login_asks_for_one(tmp_path):
    app = create_app(annotated(tmp_path))
    asked = [one for one in routes(app) if one[1] not in OPEN]
    assert len(asked) > 10
    for method, path in asked:
        client = TestClient(app, base_url=URL, follow_redirects=False)  # nobody
        answer = client.request(method, filled(path))
        assert (answer.status_code, answer.headers.get("location")) == (303, "/login") or answer.status_code == 403, (
            path
        )


def test_an_annotator_reaches_no_page_of_the_owners(tmp_path):
    database = annotated(tmp_path)
    boss, ann = Person(database, "boss"), Person(database, "ann")
    boss.get("/owner")
    ann.get("/rank")
    pages = [one for one in routes(ann.client.app) if one[1].startswith("/owner")]
    assert len(pages) == 8
    for method, path in pages:
        for token in (ann.csrf, boss.csrf):
            answer = ann.client.request(method, filled(path), headers={"X-CSRF-Token": token})
            assert answer.status_code == 403, path
            assert "round" not in answer.text or "owner" in answer.text
    assert [one.name for one in accounts.listed(database)] == ["ann", "ben", "boss"]


def test_an_annotator_sees_and_undoes_nothing_of_anothers(tmp_path):
    database = annotated(tmp_path, 1)
    ann, ben = Person(database, "ann"), Person(database, "ben")
    task = task_of(ann.get("/rank"))["task"]
    kept = ann.send(task=task, submission="0123456789", ranks=RANKS, comment="mine alone").json()["judgement"]
    page = ben.get("/rank")
    assert "mine alone" not in page.text
    assert task_of(page)["ranks"] == {}
    assert ben.post("/rank/undo", judgement=kept).status_code == 409
    # ann's submission id under ben's name: neither ann's judgement nor a new one
    assert ben.send(task=task, submission="0123456789", ranks=RANKS).status_code == 409
    assert [one.account.name for one in exchange.judgements(database, 1)] == ["ann"]


def test_a_task_that_was_not_handed_out_is_not_taken(tmp_path):
    database = annotated(tmp_path, 3)
    ann = Person(database, "ann")
    mine = task_of(ann.get("/rank"))["task"]
    for task in {1, 2, 3, 99} - {mine}:
        assert ann.send(task=task, submission="0123456789", ranks=RANKS).status_code == 409
    assert not exchange.judgements(database, 1)


def test_forged_requests_are_refused(tmp_path):
    database = annotated(tmp_path)
    ann, ben = Person(database, "ann"), Person(database, "ben")
    said = {"task": task_of(ann.get("/rank"))["task"], "submission": "0123456789", "ranks": RANKS}
    ben.get("/rank")
    good = {"X-CSRF-Token": ann.csrf}
    assert ann.client.post("/rank", json=said).status_code == 403  # a form of another site has no token
    assert ann.client.post("/rank", json=said, headers={"X-CSRF-Token": ben.csrf}).status_code == 403
    assert ann.client.post("/rank", json=said, headers={**good, "Origin": "https://evil.example"}).status_code == 403
    assert ann.client.post("/rank", json=said, headers={**good, "Origin": "null"}).status_code == 403
    assert ann.client.post("/logout").status_code == 403
    assert ann.client.post("/rank", json=said, headers={**good, "Origin": URL}).status_code == 200


def test_a_forged_cookie_is_nobodys(tmp_path):
    database = annotated(tmp_path)
    ann = Person(database, "ann")
    ((name, signed),) = ann.client.cookies.items()
    stranger = TestClient(create_app(database), base_url=URL, follow_redirects=False)
    for cookie in (signed[:-4] + "AAAA", "eyJhY2NvdW50IjogWzMsIDFdfQ==.x.y", ""):
        assert stranger.get("/rank", cookies={name: cookie}).status_code == 303
    assert stranger.get("/rank", cookies={name: signed}).status_code == 200


def test_servers_on_two_ports_leave_each_others_sessions_alone(tmp_path):
    one, other = annotated(tmp_path / "one"), annotated(tmp_path / "other")
    ann = Person(one, "ann")
    second = TestClient(create_app(other), base_url=URL, cookies=ann.client.cookies, follow_redirects=False)
    assert second.get("/rank").headers["location"] == "/login"
    second.get("/login")
    assert len(second.cookies) == 2
    assert TestClient(create_app(one), base_url=URL, cookies=second.cookies).get("/rank").status_code == 200


def test_the_cookie_is_kept_from_scripts_and_other_sites(tmp_path):
    database = annotated(tmp_path)
    for https in (False, True):
        client = TestClient(create_app(database, https=https), base_url=URL)
        cookie = client.get("/login").headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert ("secure" in cookie) == https


def test_logging_out_resetting_and_removing_end_a_session(tmp_path):
    database = annotated(tmp_path)
    ann, ben, boss = (Person(database, name) for name in ("ann", "ben", "boss"))
    ann.get("/rank")
    assert ann.post("/logout").status_code == 303
    accounts.reset(database, "ben")
    accounts.remove(database, "boss")
    for person in (ann, ben, boss):
        assert person.get("/rank").headers["location"] == "/login"


def test_tries_at_a_password_run_out_and_links_log_in(tmp_path):
    database = annotated(tmp_path)
    thief = Person(database)
    thief.get("/login")
    answers = [thief.post("/login", name="ann", password=f"wrong {n}").status_code for n in range(12)]
    assert answers == [401] * 10 + [429] * 2
    assert thief.post("/login", name="ANN ", password=PASSWORD).status_code == 429
    assert thief.post("/login", name="ben", password=PASSWORD).status_code == 303  # another name's are left
    guest = Person(database)
    assert guest.get("/login/not-a-token").status_code == 401
    assert guest.get(f"/login/{accounts.link(database, 'ann')}").headers["location"] == "/"
    assert guest.get("/").headers["location"] == "/rank"


def test_large_bodies_are_refused_however_they_come(tmp_path):
    database = annotated(tmp_path)
    ann = Person(database, "ann")
    ann.get("/rank")
    large = b"x" * (security.BODY + 1)
    headers = {"X-CSRF-Token": ann.csrf, "Content-Type": "application/json"}
    assert ann.client.post("/rank", content=large, headers=headers).status_code == 413
    pieces = (large[i : i + 65536] for i in range(0, len(large), 65536))  # no length is told
    assert ann.client.post("/rank", content=pieces, headers=headers).status_code == 413
    assert ann.client.post("/login", content=large, headers=headers).status_code == 413


def test_other_names_that_lead_here_are_refused(tmp_path):
    client = TestClient(create_app(annotated(tmp_path)), base_url="http://evil.example")
    assert client.get("/login").status_code == 400


@pytest.mark.parametrize("path", ["/login", "/rank", "/static/rank.js", "/none"])
def test_pages_run_only_scripts_of_their_own(tmp_path, path):
    ann = Person(annotated(tmp_path), "ann")
    answer = ann.get(path)
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?! src=\"/static/)|<style| on\w+=|javascript:| style=", answer.text) or ".js" in path
