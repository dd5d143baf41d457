"""A registered version on the Hugging Face hub: its folder as it is, and its model card as the repository's README."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lib.data.joined import items
from rlhf_lib.data.sources import EMBEDDED
from rlhf_lib.errors import EnvironmentFault, ModelError
from rlhf_lib.models import hub
from tasks.registry import policies, versions

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from mlflow.entities.model_registry import ModelVersion

    from rlhf_lib.recipe import Recipe

CARD = "README.md"
_LINKS = re.compile(r"^(Samples and report|Every setting, and the other stages): .*\n", re.M)  # to servers of one's own
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Upload:
    version: str  # NAME VERSION
    files: dict[str, Path]  # by their names in the repository, without the card
    card: str

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, the card first."""
        return {CARD: len(self.card.encode())} | {name: path.stat().st_size for name, path in self.files.items()}

    def head(self) -> str:
        """The card down to its first section."""
        return self.card.partition("\n## ")[0].rstrip()


def prepare(model: str, *, ask_hub: bool = True) -> Upload:
    """What `push` uploads of the version that NAME (its champion), NAME@ALIAS or NAME/VERSION names.

    Without `ask_hub` nothing is sent to the hub: the licence of the base model is then known only where its card is in
    the cache. Raises ModelError.
    """
    version = versions.named(model)
    root, place = policies.fetch(versions.uri_of(version))
    folder = Path(place)
    files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != CARD}
    written = Path(root) / "model_card.md"
    text = written.read_text() if written.is_file() else str(version.description)
    return Upload(f"{version.name} {version.version}", files, _front_matter(version, folder, ask_hub) + _public(text))


def push(model: str, repo: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload the version as one commit to the model repository `repo` (USER/NAME, or NAME for the token's own user),
    which is made where it is missing, on the branch `revision`. The commit's page.

    Raises EnvironmentFault without a token, a hub that answers, or the right to write; ModelError for an unknown
    version and for a name that can't be a repository's.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ModelError(f"{repo!r} can't be a repository's name (give USER/NAME): {error}") from None
    versions.named(model)
    if not get_token():
        raise EnvironmentFault(
            f"no token for {hub.endpoint()}: make one that may write on {hub.endpoint()}/settings/tokens, then "
            "`hf auth login` or set HF_TOKEN (--dry-run needs none)"
        )
    if reason := hub.unreachable():
        raise EnvironmentFault(f"{hub.endpoint()} can't be asked: {reason}")
    upload = prepare(model)
    api = HfApi(endpoint=hub.endpoint())
    with _told(repo):
        made = api.create_repo(repo, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(made.repo_id, branch=revision, exist_ok=True)
        adding = [CommitOperationAdd(CARD, upload.card.encode())]
        adding += [CommitOperationAdd(name, str(path)) for name, path in upload.files.items()]
        done = api.create_commit(made.repo_id, adding, commit_message=upload.version, revision=revision)
    return str(done.commit_url)


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """The hub's refusals in one line, as EnvironmentFault."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        said = error.server_message or next(iter(str(error).splitlines()), "")
        reason = {
            401: "the token isn't accepted: make another on the hub's page settings/tokens",
            403: "the token may not write there: name a repository of your own, or use a token with the right to write",
        }.get(status or 0, "the hub refused")
        raise EnvironmentFault(f"{repo}: {reason} ({said})") from error
    except OSError as error:  # the network, in the words of whichever HTTP library
        raise EnvironmentFault(f"{hub.endpoint()} was lost on the way ({error}): run the command again") from error
    except ValueError as error:
        raise EnvironmentFault(f"{repo}: the hub refused: {' '.join(str(error).split())}") from error


def _public(card: str) -> str:
    """The card without its links to MLflow, which its readers can't open."""
    return _LINKS.sub("", card)


def _front_matter(version: ModelVersion, folder: Path, ask_hub: bool) -> str:
    """The metadata that the hub reads, as YAML between two lines of dashes."""
    from huggingface_hub import ModelCardData

    recipe = versions.recipe_of(version)
    config = json.loads((folder / "config.json").read_text())
    base = recipe.policy.model if _is_hub_id(recipe.policy.model) else None
    conversational = ["conversational"] if _has_template(folder) else []
    task = "text2text-generation" if config.get("is_encoder_decoder") else "text-generation"
    sources = [str(source.dataset) for source, _ in items(recipe.data.prompts)]
    data = ModelCardData(
        base_model=base,
        datasets=[name for name in sources if _is_hub_id(name)] or None,
        license=_licence(base, ask_hub) if base else None,
        library_name="transformers",
        pipeline_tag=task,
        tags=["ppo", "rlhf", *conversational],
        model_name=str(version.name),
        eval_results=_results(version, recipe, sources[0], task) or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _results(version: ModelVersion, recipe: Recipe, prompts: str, task: str) -> list[EvalResult]:
    """Evaluation figures of the policy, for prompts that the hub has."""
    from huggingface_hub import EvalResult

    if not _is_hub_id(prompts):
        return []
    judges = {f"judge/{name}/delta": f"gain by judge {name}" for name in recipe.evaluation.judges}
    names = {"reward/delta": "reward gained", **judges, "kl": "KL to the base model, nats per response"}
    return [
        EvalResult(
            task_type=task,
            dataset_type=prompts,
            dataset_name=f"held-out prompts of {prompts}",
            metric_type=key.replace("/", "_"),
            metric_name=name,
            metric_value=float(version.tags[key]),
        )
        for key, name in names.items()
        if key in version.tags
    ]


def _is_hub_id(name: str | None) -> bool:
    return bool(name) and _HUB_ID.fullmatch(str(name)) is not None and not Path(str(name)).exists() and name != EMBEDDED


def _has_template(folder: Path) -> bool:
    """Whether the tokenizer has a chat template."""
    settings = folder / "tokenizer_config.json"
    inside = settings.is_file() and "chat_template" in json.loads(settings.read_text())
    return inside or (folder / "chat_template.jinja").is_file()


def _licence(base: str, ask_hub: bool) -> str | None:
    """As the base model's card says; None where it says none or can't be read."""
    from huggingface_hub import HfApi, ModelCard, try_to_load_from_cache

    found = try_to_load_from_cache(base, CARD)
    if isinstance(found, str):
        licence = ModelCard.load(found).data.get("license")
    else:
        licence = None
        if ask_hub:
            with suppress(Exception):  # a gated model, a base that is gone: the card does without
                card = HfApi(endpoint=hub.endpoint()).model_info(base, timeout=hub.ANSWER_WITHIN).card_data
                licence = card.get("license") if card else None
    return licence if isinstance(licence, str) else None
