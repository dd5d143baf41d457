"""The owner's pages: rounds, agreement, files, accounts."""

import json

from annotated import Person, annotated, task_of

from tasks.annotation import accounts, overview, store

TASK = {"id": "n1", "prompt": "Which?", "responses": [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}]}


def ranked_by_two(folder):
    database = annotated(folder, 2)
    for name, ranks in (("ann", {"a": 1, "b": 2, "c": 3}), ("ben", {"a": 1, "b": 2, "c": 3})):
        person = Person(database, name)
        for n in range(2):
            task = task_of(person.get("/rank"))["task"]
            person.send(
                task=task, submission=f"{name}-{n}-00000", ranks=ranks, seconds=7, comment="<b>hm</b>" * (n == 0)
            )
    return database


def test_a_round_is_shown_as_it_stands_and_downloaded(tmp_path):
    database = ranked_by_two(tmp_path)
    boss = Person(database, "boss")
    assert "4 of 4" in boss.get("/owner").text
    page = boss.get("/owner/rounds/1").text
    assert "<b>4 / 4</b>" in page
    assert "<b>1.00</b><span>Krippendorff" in page
    assert "<b>7 s</b>" in page
    assert "2 with 2" in page
    assert "&lt;b&gt;hm&lt;/b&gt;" in page
    assert "<b>hm</b>" not in page
    rows = [json.loads(line) for line in boss.get("/owner/rounds/1/rankings.jsonl").text.splitlines()]
    assert [(row["id"][0], row["annotator"], row["ranks"]) for row in rows] == [
        ("t", name, {"a": 1, "b": 2, "c": 3}) for name in ("ann", "ann", "ben", "ben")
    ]
    tasks = [json.loads(line) for line in boss.get("/owner/rounds/1/tasks.jsonl").text.splitlines()]
    assert [task["id"] for task in tasks] == ["t0", "t1"]
    assert boss.get("/owner/rounds/1/skips.jsonl").text == ""
    for path in ("/owner/rounds/9", "/owner/rounds/9/tasks.jsonl"):
        assert boss.get(path).status_code == 404
    assert boss.get("/owner/rounds/1/secrets.jsonl").status_code == 422


def test_a_round_is_opened_from_a_file_closed_and_filled(tmp_path):
    database = annotated(tmp_path)
    boss = Person(database, "boss")
    boss.get("/owner")
    answer = boss.upload("/owner/rounds", "birds.jsonl", json.dumps(TASK) + "\n", annotators="2")
    assert answer.headers["location"] == "/owner/rounds/2"
    row = overview.rounds(database)[1]
    assert (row.name, row.tasks, row.wanted) == ("birds", 1, 2)
    answer = boss.upload("/owner/rounds", "more.jsonl", json.dumps(TASK | {"id": "n2"}) + "\nbad\n")
    assert "1 line can't be used" in answer.text
    rankings = json.dumps({"id": "n1", "annotator": "zoe", "ranking": ["b", "a"]}) + "\n"
    assert "1 rankings taken, 0 were there" in boss.upload("/owner/rounds/2/rankings", "r.jsonl", rankings).text
    assert "0 rankings taken, 1 were there" in boss.upload("/owner/rounds/2/rankings", "r.jsonl", rankings).text
    answer = boss.upload("/owner/rounds", "broken.jsonl", "nothing\n")
    assert answer.status_code == 422
    assert "can be used" in answer.text
    assert boss.post("/owner/rounds/2/state", closed="true").status_code == 303
    assert overview.rounds(database)[1].closed


def test_an_export_of_another_tool_is_taken(tmp_path):
    database = annotated(tmp_path)
    boss = Person(database, "boss")
    boss.get("/owner")
    fields = {"prompt": "Which?", "one": "x", "two": "y"}
    record = {"fields": fields, "responses": {"order": [{"user_id": "u", "value": ["two", "one"]}]}}
    answer = boss.upload("/owner/rounds", "argilla.json", json.dumps([record]))
    assert "1 rankings taken" in answer.text
    assert overview.rounds(database)[1].name == "argilla"


def test_accounts_are_added_reset_and_removed(tmp_path):
    database = annotated(tmp_path)
    boss = Person(database, "boss")
    boss.get("/owner")
    page = boss.post("/owner/accounts", name="cyd").text
    password = page.split('<code id="password">')[1].split("<")[0]
    assert accounts.by_password(database, "cyd", password).role == "annotator"
    link = page.split('Link <a href="')[1].split('"')[0]
    assert accounts.by_link(database, link.rsplit("/", 1)[1]).name == "cyd"
    ids = {one.name: one.id for one in accounts.listed(database)}
    assert "cyd</b> can log in" in boss.post(f"/owner/accounts/{ids['cyd']}", action="reset").text
    assert accounts.by_password(database, "cyd", password) is None
    assert boss.post(f"/owner/accounts/{ids['cyd']}", action="remove").status_code == 303
    assert not next(one for one in accounts.listed(database) if one.name == "cyd").active
    assert boss.post(f"/owner/accounts/{ids['boss']}", action="remove").status_code == 422  # not oneself
    assert boss.post("/owner/accounts", name="ann").status_code == 422
    assert boss.post("/owner/accounts/99", action="remove").status_code == 404


def test_what_people_wrote_is_text_on_the_owners_pages(tmp_path):
    database = annotated(tmp_path)
    attack = "<script>alert(1)</script>{{ 123 * 1001 }}"
    tasks = [store.NewTask(attack, attack, {"a": attack, "b": "x"}, criterion=attack, instructions=attack)]
    store.open_round(database, attack, tasks, annotators=1)
    store.add_vote(database, attack, [attack, "x"], 0, "eve", comment=attack, round_name=attack)
    boss = Person(database, "boss")
    for path in ("/owner", "/owner/rounds/2", "/owner/rounds/3", "/rank"):
        page = boss.get(path).text
        assert "<script>alert" not in page
        assert "123123" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{ 123 * 1001 }}" in boss.get("/owner").text
