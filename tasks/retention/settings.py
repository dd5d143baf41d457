"""The run folder's settings: how much of old runs is kept."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf_lib.errors import EnvironmentFault

FILE = "settings.yaml"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Keep(_Section):
    """What is kept: the newest so many finished runs of each recipe, and whatever is younger than so many days. Where
    only one of the two is set, it alone decides; where neither is, everything is kept."""

    newest: int | None = Field(None, ge=0)
    days: float | None = Field(None, ge=0)

    def lets_go(self, age: float, rank: int | None) -> bool:
        """Whether a run of this age in seconds may go. `rank`: how many newer finished runs its recipe has; None for a
        run that hasn't finished, for which its age alone decides."""
        young = self.days is None or age <= 86400 * self.days
        if rank is None:
            return not young
        if self.newest is None:
            return not young
        return rank >= self.newest and (self.days is None or not young)


class PrefectRecords(_Section):
    """How long the Prefect server that `rlhf up` and `rlhf ui` start keeps the records of ended flow runs."""

    days: float = Field(ge=1)


class Retention(_Section):
    """What is kept of each kind; null: all of it."""

    checkpoints: Keep | None = Keep(newest=1, days=14)
    work: Keep | None = Keep(newest=5, days=60)
    artifacts: Keep | None = None
    runs: Keep | None = None
    prefect: PrefectRecords | None = None

    def changed(self, newest: int | None, days: float | None, only: list[str] | None) -> Retention:
        """This policy for one call: of the kinds in `only` (None: of those that aren't null) and with these numbers in
        place of its own. Raises EnvironmentFault for an unknown kind or a negative number."""
        for kind in only or []:
            if kind not in KINDS:
                raise EnvironmentFault(f"there is no kind {kind} to clean: name some of {', '.join(KINDS)}")
        if min(newest or 0, days or 0) < 0:
            raise EnvironmentFault("--newest and --days can't be negative")
        given = {name: value for name, value in (("newest", newest), ("days", days)) if value is not None}
        kept: dict[str, Keep | None] = dict.fromkeys(KINDS)
        for kind in KINDS if only is None else only:
            own: Keep | None = getattr(self, kind)
            if own is not None or only is not None:
                kept[kind] = keep = (own or Keep()).model_copy(update=given)
                if keep.newest is None and keep.days is None:
                    raise EnvironmentFault(f"how much of {kind} is kept isn't set: give --newest, --days or both")
        return self.model_copy(update=kept)


KINDS = ("checkpoints", "work", "artifacts", "runs")


class Settings(_Section):
    """What a run folder's settings.yaml holds."""

    retention: Retention = Retention()


def load(root: Path) -> Settings:
    """The settings of the run folder; the defaults where it has none. Raises EnvironmentFault naming the key."""
    file = root / FILE
    if not file.is_file():
        return Settings()
    try:
        return Settings.model_validate(yaml.safe_load(file.read_text()) or {})
    except yaml.YAMLError as error:
        raise EnvironmentFault(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise EnvironmentFault(f"{file}: " + "; ".join(map(_explained, error.errors()))) from None


def _explained(fault: Any) -> str:
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] != "extra_forbidden":
        return f"{where or 'it'}: {fault['msg']} (given: {fault['input']!r})"
    known = [name for section in (Settings, Retention, Keep) for name in section.model_fields]
    near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
    return f"unknown key '{where}'" + (f": did you mean '{near[0]}'?" if near else "")
