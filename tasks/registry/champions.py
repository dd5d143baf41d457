"""Which version of a registered model is its champion: who made it so, when and why, and the way back.

Each change is one tag of the registered model, champion.0001, champion.0002, ..., so that none is overwritten and the
way back doesn't end after one step.
"""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

import mlflow
from mlflow.exceptions import MlflowException

from rlhf_lib.errors import ModelError
from tasks.registry import events
from tasks.registry.policies import CHAMPION, DESCRIPTION_LIMIT, champion
from tasks.registry.versions import registered, versions

_PREFIX = "champion."
_WHY_LIMIT = 2000  # characters: a tag holds 5000


@dataclass(frozen=True)
class Change:
    """`version` took the alias from `before` (None: there was no champion); `how`: by a run's gates, or by hand."""

    version: str
    before: str | None
    how: Literal["gates", "promoted", "rolled back"]
    who: str
    when: str  # UTC, ISO 8601
    why: str

    def __str__(self) -> str:
        if self.how == "rolled back":
            did = f"rolled back from version {self.before} to {self.version}"
        else:
            did = f"version {self.version} promoted by {'the gates' if self.how == 'gates' else 'hand'}"
            did += f", version {self.before} before it" if self.before else ""
        return f"{self.when}, {self.who}: {did}: {self.why}"


def crown(name: str, version: str, how: Literal["gates", "promoted", "rolled back"], why: str | None) -> Change:
    """Give the version the champion alias, write down the change, by hand on the versions concerned too, and tell
    Prefect of it."""
    client = mlflow.MlflowClient()
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    change = Change(str(version), champion(name), how, user(), now, (why or "no reason given")[:_WHY_LIMIT])
    client.set_registered_model_alias(name, CHAMPION, version)
    number = max(_numbers(name), default=0) + 1
    client.set_registered_model_tag(name, f"{_PREFIX}{number:04d}", json.dumps(asdict(change)))
    if how != "gates":
        for concerned in {change.version, change.before} - {None}:
            client.set_model_version_tag(name, concerned, "audit", str(change))
            described = client.get_model_version(name, str(concerned)).description or ""
            client.update_model_version(name, str(concerned), f"**{change}**\n\n{described}"[:DESCRIPTION_LIMIT])
    happened: events.Happened = "rolled-back" if how == "rolled back" else "promoted"
    events.tell(happened, name, change.version, champion=change.before, why=change.why, who=change.who)
    return change


def promote(name: str, version: str, why: str | None = None) -> Change:
    """Make the version champion, whatever its gates said. Raises ModelError for an unknown one, or the champion."""
    registered(name)
    known = [str(v.version) for v in versions(name)]
    if version not in known:
        raise ModelError(f"{name} has no version {version}: it has {', '.join(reversed(known)) or 'none'}")
    if champion(name) == version:
        raise ModelError(f"version {version} of {name} is already the champion: rlhf models {name} shows since when")
    return crown(name, version, "promoted", why)


def rollback(name: str, why: str | None = None) -> Change:
    """Give the champion alias back to the version that had it before; again, and it goes one further back.

    Raises ModelError where there is no champion or none before it.
    """
    registered(name)
    present = champion(name)
    if present is None:
        raise ModelError(f"{name} has no champion to roll back from: rlhf promote {name} VERSION makes one")
    known = {str(version.version) for version in versions(name)}
    before = [version for version in line(name)[:-1] if version in known]
    if not before:
        raise ModelError(
            f"version {present} of {name} has no champion before it on record: rlhf promote {name} VERSION names one"
        )
    return crown(name, before[-1], "rolled back", why)


def history(name: str) -> list[Change]:
    """Every change of champion on record, the oldest first."""
    tags = mlflow.MlflowClient().get_registered_model(name).tags
    return [Change(**json.loads(tags[f"{_PREFIX}{number:04d}"])) for number in sorted(_numbers(name))]


def line(name: str) -> list[str]:
    """The champions that led to the present one, which is the last: what was rolled back is out of it. An alias that
    was moved elsewhere (MLflow's page) counts as promoted."""
    stack: list[str] = []
    for change in history(name):
        if change.before is not None and stack[-1:] != [change.before]:
            stack.append(change.before)
        if change.how == "rolled back" and change.version in stack:
            while stack[-1] != change.version:
                stack.pop()
        else:
            stack.append(change.version)
    present = champion(name)
    return stack if present is None or stack[-1:] == [present] else [*stack, present]


def _numbers(name: str) -> list[int]:
    try:
        tags = mlflow.MlflowClient().get_registered_model(name).tags
    except MlflowException as error:
        raise ModelError(f"no registered model is named {name} ({error}): rlhf models lists them") from error
    ends = (key.removeprefix(_PREFIX) for key in tags if key.startswith(_PREFIX))
    return [int(end) for end in ends if end.isdigit()]


def user() -> str:
    """Who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
