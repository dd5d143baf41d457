"""Accounts: passwords and links are kept as hashes only, end when they should, and names are checked."""

import pytest
from annotated import PASSWORD, annotated
from sqlalchemy import text

from rlhf_lib.errors import DataError
from tasks.annotation import accounts, store


def test_a_password_logs_in_until_it_is_reset_or_the_account_removed(tmp_path):
    database = annotated(tmp_path)
    ann = accounts.by_password(database, " ann ", PASSWORD)
    assert ann.name == "ann"
    assert accounts.by_password(database, "ann", PASSWORD + "x") is None
    assert accounts.by_password(database, "nobody", PASSWORD) is None
    assert accounts.by_session(database, ann.id, ann.generation).name == "ann"
    drawn = accounts.reset(database, "ann")
    assert accounts.by_password(database, "ann", PASSWORD) is None
    assert accounts.by_session(database, ann.id, ann.generation) is None  # logged in elsewhere
    assert accounts.by_password(database, "ann", drawn).name == "ann"
    accounts.remove(database, "ann")
    assert accounts.by_password(database, "ann", drawn) is None
    with pytest.raises(DataError, match="was removed"):
        accounts.link(database, "ann")
    accounts.reset(database, "ann", PASSWORD)
    assert accounts.by_password(database, "ann", PASSWORD).name == "ann"


def test_a_link_logs_in_until_it_runs_out_or_another_is_made(tmp_path):
    database = annotated(tmp_path)
    first = accounts.link(database, "ann")
    assert accounts.by_link(database, first).name == "ann"
    second = accounts.link(database, "ann")
    assert accounts.by_link(database, first) is None
    assert accounts.by_link(database, second).name == "ann"
    assert accounts.by_link(database, accounts.link(database, "ann", seconds=-1)) is None
    accounts.reset(database, "ann")
    assert accounts.by_link(database, second) is None


def test_the_database_holds_no_password_and_no_token(tmp_path):
    database = annotated(tmp_path)
    token = accounts.link(database, "ann")
    with database.read() as session:
        rows = str(session.execute(text("SELECT * FROM account")).all())
    assert PASSWORD not in rows
    assert token not in rows
    assert rows.count("$argon2id$") == 3


def test_bad_names_and_short_passwords_are_refused(tmp_path):
    database = annotated(tmp_path)
    for name in ("", " ", "a/b", "<b>", "x" * 81, "a\nb"):
        with pytest.raises(DataError, match="can't be a name"):
            accounts.add(database, name)
    with pytest.raises(DataError, match="has 5 characters, and needs 10"):
        accounts.add(database, "dot", password="short")
    with pytest.raises(DataError, match="already: rlhf annotators reset ann"):
        accounts.add(database, "ann")
    with pytest.raises(DataError, match="no account nobody"):
        accounts.reset(database, "nobody")


def test_a_name_with_votes_can_become_an_account(tmp_path):
    database = annotated(tmp_path)
    vote = store.add_vote(database, "Which?", ["One.", "Two."], 0, "eve")
    made, password = accounts.add(database, "eve")
    assert made.id == vote.account_id
    assert accounts.by_password(database, "eve", password).name == "eve"
