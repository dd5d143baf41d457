"""Registered versions: their recipe, reference and reward model, found from the registry alone on any machine, and a
listing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from rlhf_lib.errors import ModelError
from rlhf_lib.recipe import Recipe, RewardConfig, load_recipe
from rlhf_lib.statistics import counted
from tasks.registry.policies import CHAMPION, champion, resolve_model

REFERENCE, REWARD_MODEL = "reference", "reward_model"  # tags of a version, and artifact folders of the run that kept it
_FINGERPRINTS = {REFERENCE: "base_model_fingerprint", REWARD_MODEL: "reward_fingerprint"}


def judge_kind(name: str) -> str:
    """The tag, and artifact folder, of a judge that was trained in the run."""
    return f"judge.{name}"


def fingerprint_tag(kind: str) -> str:
    """The tag with the fingerprint of what the tag `kind` tells the place of."""
    return _FINGERPRINTS.get(kind, f"{kind}.fingerprint")


def keep(kind: str, model: str | None, name: str, fingerprint: str | None) -> str | None:
    """Make the reference, the reward model or a judge of a new version of `name` findable, and return where: a hub id
    as is; a folder as an artifact of the active run, or of the run that kept the same one for an earlier version."""
    if model is None or not Path(model).is_dir():
        return model
    for version in versions(name):
        uri = version.tags.get(kind)
        if uri and fingerprint and version.tags.get(fingerprint_tag(kind)) == fingerprint and _kept(uri):
            return uri
    mlflow.log_artifacts(model, kind)
    return f"runs:/{mlflow.active_run().info.run_id}/{kind}"  # type: ignore[union-attr]


def versions(name: str) -> list[ModelVersion]:
    """The model's versions, newest first; none for an unknown name."""
    found = mlflow.MlflowClient().search_model_versions(f"name='{name}'")
    return sorted(found, key=lambda version: -int(version.version))


def version_of(uri: str) -> ModelVersion:
    """The version behind models:/NAME/VERSION or models:/NAME@ALIAS. Raises ModelError."""
    client = mlflow.MlflowClient()
    name, at, alias = uri.removeprefix("models:/").partition("@")
    try:
        if at:
            return client.get_model_version_by_alias(name, alias)
        name, _, number = name.rpartition("/")
        return client.get_model_version(name, number)
    except MlflowException as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model {uri} is not in the registry at {mlflow.get_registry_uri()} ({reason}): give models:/NAME@ALIAS or "
            "models:/NAME/VERSION of a registered version (rlhf models lists them), a folder or a hub id"
        ) from error


def named(model: str) -> ModelVersion:
    """The version that NAME (its champion), NAME@ALIAS or NAME/VERSION names, with or without models:/ before it.
    Raises ModelError, listing what is registered."""
    name, separator, which = [*re.split("([@/])", model.removeprefix("models:/"), maxsplit=1), "", ""][:3]
    registered(name)
    aliases = mlflow.MlflowClient().get_registered_model(name).aliases
    numbers = [str(version.version) for version in versions(name)]
    number = which if separator == "/" else str(aliases.get(which or CHAMPION, ""))
    if number not in numbers:
        there = ", ".join([*reversed(numbers), *(f"@{alias}" for alias in sorted(aliases))]) or "none yet"
        missing = f"version {which}" if separator == "/" else f"version with the alias {which}" if which else CHAMPION
        raise ModelError(f"{name} has no {missing}: give {name}/VERSION or {name}@ALIAS (there are: {there})")
    return version_of(f"models:/{name}/{number}")


def address(model: str) -> str:
    """NAME, NAME@ALIAS and NAME/VERSION of a registered model as models:/NAME/VERSION; anything else as it is."""
    name = re.split("[@/]", model)[0]
    return uri_of(named(model)) if name and versions(name) else model


def store_missing() -> str | None:
    """What to say where nothing was ever registered, since the registry's embedded database isn't there; looking into
    it would make it."""
    uri = mlflow.get_registry_uri()
    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or file.exists():
        return None
    return (
        f"nothing is registered yet ({file} doesn't exist): rlhf run RECIPE first, or name the run folder by --run-dir"
    )


def uri_of(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}"


def logged_model_of(version: ModelVersion) -> str | None:
    """The id of the version's logged model, which the stores give only in its source."""
    source = str(version.source)
    return source.removeprefix("models:/") if source.startswith("models:/m-") else None


def recipe_of(version: ModelVersion, overrides: list[str] | None = None) -> Recipe:
    """The recipe that the version was made with, plus overrides. Raises ModelError if it isn't recorded."""
    try:
        run = version.tags["parent_run_id"]
        file = mlflow.artifacts.download_artifacts(run_id=run, artifact_path="recipe.yaml")
    except (KeyError, MlflowException, OSError) as error:
        raise ModelError(f"{uri_of(version)}: its run's recipe is gone ({error}): name one with --recipe") from error
    return load_recipe(file, overrides)


def reference_of(version: ModelVersion) -> str:
    """Folder or hub id of the model that the version started from and is compared with. Raises ModelError."""
    return _fetched(version, REFERENCE, "name a folder or hub id instead")


def reward_model_of(recipe: Recipe, made: Iterable[ModelVersion]) -> str | None:
    """Folder or hub id of the recipe's reward model, None for a reward that has none of its own (a function, a sum of
    existing rewards).

    One that is trained in a run is that of the first version in `made` from the recipe, else that of the recipe's
    champion or newest version. Raises ModelError where there is none.
    """
    if not _made_in_a_run(recipe):
        return resolve_model(recipe.reward.model) if recipe.reward.model else None
    if (found := _trained(recipe, made, REWARD_MODEL)) is not None:
        return found
    raise ModelError(
        f"the reward model of recipe {recipe.name} is trained by a run of it, and no registered version keeps one: run "
        "the recipe, or set a reward that exists (--set reward.kind=..., --set reward.model=...)"
    )


def reward_of(version: ModelVersion) -> tuple[RewardConfig, str | None]:
    """The reward that the version was trained for: its recipe's section, and the folder or hub id of its model, None
    for one without. Raises ModelError where either is gone."""
    reward = (recipe := recipe_of(version)).reward
    if _made_in_a_run(recipe) or REWARD_MODEL in version.tags:
        return reward, _fetched(version, REWARD_MODEL, "its runs kept none")
    return reward, resolve_model(reward.model) if reward.model else None


def _made_in_a_run(recipe: Recipe) -> bool:
    reward = recipe.reward
    return reward.has_folder or (reward.kind == "classifier" and recipe.data.labelled is not None)


def judges_of(recipe: Recipe, made: Iterable[ModelVersion]) -> dict[str, str]:
    """Folders of the recipe's judges that a run of it trains, by name, found as its reward model is. Raises ModelError
    where one is missing."""
    found: dict[str, str] = {}
    made = list(made)
    for name, judge in recipe.evaluation.judges.items():
        if not judge.has_folder:
            continue
        folder = _trained(recipe, made, judge_kind(name))
        if folder is None:
            raise ModelError(
                f"the judge {name} of recipe {recipe.name} is trained by a run of it, and no registered version keeps "
                "one: run the recipe, or compare without judges (--set evaluation.judges={})"
            )
        found[name] = folder
    return found


def _trained(recipe: Recipe, made: Iterable[ModelVersion], kind: str) -> str | None:
    name = recipe.registration.name or recipe.name
    served = champion(name)
    own = sorted(versions(name), key=lambda version: str(version.version) != served)
    for version in [*made, *own]:
        if version.tags.get("recipe") == recipe.name and kind in version.tags:
            return _fetched(version, kind, "run the recipe again")
    return None


def _fetched(version: ModelVersion, kind: str, fix: str) -> str:
    uri = version.tags.get(kind)
    if uri is None:
        raise ModelError(f"{uri_of(version)} doesn't say what its {kind.replace('_', ' ')} was: {fix}")
    if not uri.startswith("runs:/"):
        return uri
    try:
        return mlflow.artifacts.download_artifacts(artifact_uri=uri)
    except (MlflowException, OSError) as error:
        raise ModelError(f"{uri_of(version)}: its {kind.replace('_', ' ')} {uri} is gone ({error}): {fix}") from error


def _kept(uri: str) -> bool:
    run, _, folder = uri.removeprefix("runs:/").partition("/")
    try:
        return uri.startswith("runs:/") and bool(mlflow.MlflowClient().list_artifacts(run, folder))
    except (MlflowException, OSError):
        return False


HEADER = ("VERSION", "ALIASES", "DATE (UTC)", "REWARD GAINED", "PERPLEXITY", "KL", "DISTINCT-2", "WHY")


def registered(name: str | None = None) -> list[str]:
    """Names of the registered models, or the one asked for. Raises ModelError for an unknown one."""
    names: list[str] = []
    token: str | None = ""
    while token is not None:
        page = mlflow.MlflowClient().search_registered_models(page_token=token or None)
        names += [model.name for model in page]
        token = page.token or None
    if name is None:
        return names
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near and len(names) > 1 else ""
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        listed = (
            f"the registry has {', '.join(names[:10])}{more}" if names else "the registry is empty: run a recipe first"
        )
        raise ModelError(f"there is no registered model named {name}: {hint}{listed}")
    return [name]


def version_rows(name: str) -> list[tuple[str, ...]]:
    """One row per version under HEADER, newest first."""
    aliases = mlflow.MlflowClient().get_registered_model(name).aliases  # a search leaves those of versions out
    rows: list[tuple[str, ...]] = []
    for version in versions(name):
        tags = version.tags
        date = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        rows.append(
            (
                str(version.version),
                ", ".join(sorted(a for a, number in aliases.items() if str(number) == str(version.version))),
                f"{date:%Y-%m-%d %H:%M}",
                _gain(tags),
                _change(tags, "perplexity"),
                tags.get("kl", "-"),
                _change(tags, "diversity/distinct_2"),
                tags.get("audit") or tags.get("reason", "-"),
            )
        )
    return rows


def _gain(tags: Mapping[str, str]) -> str:
    """What the mean score gained, with its interval where there is one, and the number of prompts."""
    delta, low, high, prompts = (
        None if (value := tags.get(f"reward/{key}")) is None else float(value)
        for key in ("delta", "ci95_low", "ci95_high", "prompts")
    )
    if delta is None:
        return "-"
    shown = f"{delta:+.3g}" + (f" [{low:+.3g}, {high:+.3g}]" if low is not None and high is not None else "")
    return shown if prompts is None else f"{shown}, {counted(int(prompts), 'prompt')}"


def _change(tags: Mapping[str, str], name: str) -> str:
    """Reference -> policy, by either spelling of the tags: perplexity/policy, diversity/distinct_2_policy."""
    for separator in ("/", "_"):
        before, after = (tags.get(f"{name}{separator}{side}") for side in ("reference", "policy"))
        if before is not None and after is not None:
            return f"{float(before):.3g} -> {float(after):.3g}"
    return "-"
