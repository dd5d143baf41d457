"""Who may log in: accounts with a role, passwords as Argon2 hashes, login links as hashed tokens."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from functools import lru_cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import select

from rlhf_lib.errors import DataError
from tasks.annotation.database import Database
from tasks.annotation.models import ANNOTATOR, OWNER, Account

LINK_SECONDS = 7 * 24 * 3600.0
SHORTEST = 10  # characters of a password
_NAME = re.compile(r"[^\x00-\x1f/<>&\"']{1,80}")
_HASHER = PasswordHasher()


def add(database: Database, name: str, *, role: str = ANNOTATOR, password: str | None = None) -> tuple[Account, str]:
    """A new account, and its password (a drawn one unless given). A name that votes are kept under becomes an account.

    Raises DataError for a name that is taken or has other characters, and for a short password.
    """
    name = name.strip()
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r} can't be a name: up to 80 characters without / < > & and quotes")
    if role not in (ANNOTATOR, OWNER):
        raise DataError(f"{role!r} is no role: {ANNOTATOR} or {OWNER}")
    password = _checked(password)
    with database.write() as session:
        account = session.execute(select(Account).where(Account.name == name)).scalar_one_or_none()
        if account is not None and (account.password or not account.active):
            raise DataError(f"there is an account {name} already: rlhf annotators reset {name} gives it a new password")
        if account is None:
            session.add(account := Account(name=name, created_at=time.time(), generation=1, active=True))
        account.role, account.password = role, _HASHER.hash(password)
        session.flush()
        return account, password


def reset(database: Database, name: str, password: str | None = None) -> str:
    """A new password, which it returns; old sessions and links end, and a removed account can log in again.

    Raises DataError if there is no such account, and for a short password.
    """
    password = _checked(password)
    with database.write() as session:
        account = _named(session.execute(select(Account).where(Account.name == name)).scalar_one_or_none(), name)
        account.password, account.link, account.active = _HASHER.hash(password), None, True
        account.generation += 1
        return password


def remove(database: Database, name: str) -> None:
    """End an account's logins. What it judged stays. Raises DataError if there is no such account."""
    with database.write() as session:
        account = _named(session.execute(select(Account).where(Account.name == name)).scalar_one_or_none(), name)
        account.active, account.link = False, None
        account.generation += 1


def link(database: Database, name: str, seconds: float = LINK_SECONDS) -> str:
    """A token that logs in as this account until it runs out; the one before ends. Only its hash is kept.

    Raises DataError if there is no such account.
    """
    token = secrets.token_urlsafe(32)
    with database.write() as session:
        account = _named(session.execute(select(Account).where(Account.name == name)).scalar_one_or_none(), name)
        if not account.active:
            raise DataError(f"the account {name} was removed: rlhf annotators reset {name} brings it back")
        account.link, account.link_until = _digest(token), time.time() + seconds
    return token


def by_password(database: Database, name: str, password: str) -> Account | None:
    """The account, if name and password are right. Takes as long where there is no such account."""
    with database.read() as session:
        account = session.execute(select(Account).where(Account.name == name.strip())).scalar_one_or_none()
    known = account is not None and account.active and account.password is not None
    hashed = account.password if account is not None and known else _nobody()
    try:
        _HASHER.verify(hashed or "", password[:1000])
    except (VerificationError, InvalidHashError):
        return None
    return account if known else None


def by_link(database: Database, token: str) -> Account | None:
    """The account that the link's token logs in as, if it hasn't run out."""
    with database.read() as session:
        account = session.execute(select(Account).where(Account.link == _digest(token))).scalar_one_or_none()
    return account if account is not None and account.active and account.link_until > time.time() else None


def by_session(database: Database, account_id: int, generation: int) -> Account | None:
    """The account of a session, unless it was removed or reset since."""
    with database.read() as session:
        account = session.get(Account, account_id)
    return account if account is not None and account.active and account.generation == generation else None


def listed(database: Database) -> list[Account]:
    """All accounts, by name."""
    with database.read() as session:
        return list(session.execute(select(Account).order_by(Account.name)).scalars())


def _named(account: Account | None, name: str) -> Account:
    if account is None:
        raise DataError(f"there is no account {name}: rlhf annotators add {name}")
    return account


def _checked(password: str | None) -> str:
    if password is None:
        return secrets.token_urlsafe(12)
    if len(password) < SHORTEST:
        raise DataError(f"the password has {len(password)} characters, and needs {SHORTEST}")
    return password


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@lru_cache(maxsize=1)
def _nobody() -> str:
    """A hash of nobody's password."""
    return _HASHER.hash(secrets.token_urlsafe(32))
