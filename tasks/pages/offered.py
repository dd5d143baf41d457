"""The registered versions, and the models they started from, that the playground offers; loaded when they are asked."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlflow

from rlhf_lib.conversation import HUMAN, SYSTEM, Conversation
from rlhf_lib.errors import DataError, ModelError
from tasks.registry import versions
from tasks.registry.answering import Origin, Speaker
from tasks.registry.policies import CHALLENGER, CHAMPION

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from rlhf_lib.rewards import Reward

REFERENCE = "reference"
KEPT = 8  # models in memory
CHOSEN = 4  # models that a page opens with, at most


@dataclass(frozen=True)
class Offer:
    """A model by its `id`, NAME/VERSION or NAME/VERSION/reference."""

    id: str
    label: str
    aliases: list[str]
    chosen: bool


@dataclass(frozen=True)
class Group:
    """A registered model: its versions, newest first, then what they started from."""

    name: str
    offers: list[Offer]


def offered(asked: list[str]) -> list[Group]:
    """The versions to choose from of the models `asked` for (NAME, NAME@ALIAS or NAME/VERSION; none asked: of every
    registered model), each with its reference. Checked at first are the versions asked for by name and, of a model
    asked for as a whole, its champion (or its newest, where it has none). Raises ModelError.
    """
    wanted = [versions.named(name) for name in asked if _names_version(name)]
    whole = [found for name in asked if not _names_version(name) for found in versions.registered(name)]
    whole = whole if asked else versions.registered()
    made = {name: versions.versions(name) for name in [*whole, *(version.name for version in wanted)]}
    aliases = {name: mlflow.MlflowClient().get_registered_model(name).aliases for name in made}
    shown = [version for name in whole for version in _shown_first(made[name], aliases[name])]
    chosen: list[str] = []
    for version in [*shown, *wanted]:
        chosen += [_id(version), *_references(version, made[version.name])]
    chosen = list(dict.fromkeys(chosen))[: max(CHOSEN, 2 * len(wanted))]
    return [_group(name, made[name], aliases[name], chosen) for name in made]


def _group(name: str, made: list[ModelVersion], aliases: Mapping[str, Any], chosen: list[str]) -> Group:
    offers = [
        Offer(
            _id(version),
            f"{name} {version.version}",
            sorted(alias for alias, number in aliases.items() if str(number) == str(version.version)),
            _id(version) in chosen,
        )
        for version in made
    ]
    started: dict[str, list[str]] = {}
    for version in reversed(made):
        for id in _references(version, made):
            started.setdefault(id, []).append(str(version.version))
    for id, numbers in started.items():
        of = name if len(started) == 1 else f"{name} {', '.join(numbers)}"
        offers.append(Offer(id, f"reference of {of}", [], id in chosen))
    return Group(name, offers)


def _names_version(name: str) -> bool:
    return "@" in name or "/" in name


def _shown_first(made: list[ModelVersion], aliases: Mapping[str, Any]) -> list[ModelVersion]:
    """The champion, or else the challenger, or else the newest; none where there is no version."""
    for alias in (CHAMPION, CHALLENGER):
        if found := [version for version in made if str(version.version) == str(aliases.get(alias))]:
            return found
    return made[:1]


def _id(version: ModelVersion) -> str:
    return f"{version.name}/{version.version}"


def _references(version: ModelVersion, made: list[ModelVersion]) -> list[str]:
    """The id of the version's reference, if it has one: that of the first version with the same."""
    where = version.tags.get(versions.REFERENCE)
    same = [other for other in made if other.tags.get(versions.REFERENCE) == where]
    return [f"{_id(same[-1])}/{REFERENCE}"] if where else []


@dataclass(frozen=True)
class Scoring:
    """The reward and the judges of a version's recipe, by their names, and why any are missing. `of`: the version."""

    of: str
    scorers: dict[str, Reward]
    missing: list[str]


@dataclass(frozen=True)
class Loaded:
    """A model that is ready, and what its answers are scored by."""

    speaker: Speaker
    scoring: Scoring


class Models:
    """Models by their ids, the last `KEPT` of them in memory."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._scoring: dict[tuple[str | None, ...], Scoring] = {}
        self._prompts: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def ready(self, id: str) -> bool:
        """Whether it is in memory."""
        return id in self._loaded

    def load(self, id: str) -> Loaded:
        """The model, by the pipeline's rules: no pickles. Raises ModelError for what isn't there, or isn't safe."""
        with self._lock:
            if id not in self._loaded:
                of = id.removesuffix(f"/{REFERENCE}")
                origin = Origin(f"models:/{_id(versions.named(of))}")
                speaker = origin.own() if of == id else origin.reference()
                if speaker is None:
                    raise ModelError(f"{of} was made from scratch and has no reference")
                self._loaded[id] = Loaded(speaker, self._scored(origin))
                while len(self._loaded) > KEPT:
                    self._loaded.popitem(last=False)
                used = [loaded.scoring for loaded in self._loaded.values()]
                self._scoring = {key: scoring for key, scoring in self._scoring.items() if scoring in used}
            self._loaded.move_to_end(id)
            return self._loaded[id]

    def _scored(self, origin: Origin) -> Scoring:
        """One for all versions with the same reward and judges."""
        recipe, version = origin.recipe, origin.version
        assert version is not None
        kinds = [versions.REWARD_MODEL, *(versions.judge_kind(name) for name in recipe.evaluation.judges)]
        made = [version.tags.get(versions.fingerprint_tag(kind)) for kind in kinds]
        judges = {name: judge.model_dump(mode="json") for name, judge in recipe.evaluation.judges.items()}
        key = (recipe.reward.model_dump_json(), json.dumps(judges), *made)
        if key not in self._scoring:
            (reward, missing), (referees, others) = origin.reward(), origin.judges()
            scorers = {"reward": reward} if reward is not None else {}
            scorers |= {f"judge {name}": judge for name, judge in referees.items()}
            self._scoring[key] = Scoring(origin.name, scorers, [*missing, *others])
        return self._scoring[key]

    def prompts(self, id: str) -> list[str]:
        """What the version's evaluation asked, as a person would type it. Raises DataError where that is not kept."""
        of = id.removesuffix(f"/{REFERENCE}")
        with self._lock:
            if of not in self._prompts:
                self._prompts[of] = _evaluated(versions.named(of))
            return self._prompts[of]


def _evaluated(version: ModelVersion) -> list[str]:
    parent = version.tags.get("parent_run_id", "")
    experiment = mlflow.get_run(parent).info.experiment_id if parent else ""
    runs: Any = mlflow.search_runs(
        [experiment], filter_string=f"tags.mlflow.parentRunId = '{parent}'", output_format="list"
    )
    client = mlflow.MlflowClient()
    for run in runs:
        if any(file.path == "before_after.json" for file in client.list_artifacts(run.info.run_id)):
            table = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/before_after.json")
            column = table["columns"].index("query")
            return list(dict.fromkeys(typed(row[column]) for row in table["data"]))
    raise DataError(f"the run that made {_id(version)} kept no evaluation prompts")


def typed(query: str) -> str:
    """A query as a person would type it: of a dialogue with a single turn the turn, anything else as it is."""
    if not query.startswith((HUMAN, SYSTEM)):
        return query
    asked = [message for message in Conversation.of(query).messages if message["role"] != "system"]
    return asked[0]["content"] if len(asked) == 1 else query
