"""Passwords and tokens in texts: found, so that no recipe carries one into a store, and redacted in messages and logs.

A secret is known by its place (the password of a URL, a query's token=..., password=... of a data source name), by its
issuer's prefix (hf_, ghp_, AKIA, ...), or because it is the value of an environment variable named as one (HF_TOKEN,
MLFLOW_TRACKING_PASSWORD, ...).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

COVER = "***"
# For JSON schemas of values that servers store before any of our code sees them: no login in a URL. ECMA's dialect.
PATTERN = r"^(?![\s\S]*:\/\/[^\/\s@]*@)"

# A password may hold unquoted slashes and ats, as S3's do; what follows host:PORT/ is a path.
_LOGIN = re.compile(r"([a-z][a-z0-9+.-]*://[^/\s:@?#]*:)(?!\d+/)([^\s'\"]+)(?=@[^\s@])", re.I)
_TOKEN_LOGIN = re.compile(r"(https?://)([^/\s:@?#]+)(?=@[^\s@])", re.I)
_QUERY = re.compile(
    r"([?&#][\w.-]*(?:token|passw(?:or)?d|secret|signature|credential|(?:api|access)_?key(?:id)?)[\w.-]*="
    r"|[?&](?:sig|key|pwd|auth)="
    r"|\bpassword=)([^&\s#'\"]+)",
    re.I,
)
_ISSUED = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[a-z]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[a-z]-[\w-]{10,}|pn[ub]_[A-Za-z0-9]{20,})"
)
_NAMES = re.compile(r"(^|_)(TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|KEY|AUTH_STRING)(_ID)?$")
_SHORTEST = 6  # characters; a shorter value of a variable is too common a word to be covered wherever it stands


def redact(text: str) -> str:
    """The text with *** in the place of every secret in it."""
    for value in _environment():
        text = text.replace(value, COVER)
    text = _LOGIN.sub(rf"\1{COVER}", text)
    text = _TOKEN_LOGIN.sub(rf"\1{COVER}", text)
    text = _QUERY.sub(rf"\1{COVER}", text)
    return _ISSUED.sub(COVER, text)


def holders(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, the value with its secret covered) for every text below that holds one."""
    if isinstance(value, str):
        if (covered := redact(value)) != value:
            yield name, covered
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        yield from holders(inner, f"{name}.{key}" if name else str(key))


def refusal(value: Any, origin: str) -> str | None:
    """Why `value` (a recipe, a flow's parameters) must not be stored, and the fix; None where it may be."""
    found = "; ".join(f"{key} holds a password or token ({covered})" for key, covered in holders(value))
    if not found:
        return None
    return (
        f"{origin}: {found}: it would be stored with every run, so leave it out and give it by an environment variable "
        "(HF_TOKEN, AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD, ...) or a Prefect Secret block"
    )


def _environment() -> list[str]:
    """Values of the variables that are named as secrets, and the passwords of those that are logins or URLs."""
    values = set()
    for name, value in os.environ.items():
        if _NAMES.search(name) and not value.startswith(("/", "~")):
            values |= {value, value.partition(":")[2]}
        elif name.endswith(("_URL", "_URI")):
            values |= {found[2] for found in _LOGIN.finditer(value)}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)
