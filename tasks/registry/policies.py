"""Policies in MLflow's model registry: logging one as a servable model, versions and aliases, and the way back to an
ordinary Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path
from textwrap import shorten
from typing import Any

import mlflow
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types.schema import (
    AnyType,
    Array,
    ColSpec,
    DataType,
    Object,
    ParamSchema,
    ParamSpec,
    Property,
    Schema,
)
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS
from packaging.version import Version

from rlhf_lib.credentials import redact
from rlhf_lib.errors import ModelError
from rlhf_lib.recipe import Recipe

CHALLENGER, CHAMPION = "challenger", "champion"
DESCRIPTION_LIMIT = 5000  # characters, in the registry's tables
_SERVER, _CHAT_SERVER = (Path(__file__).with_name(name) for name in ("policy_server.py", "chat_server.py"))
_WEIGHTS = "model"  # the artifact of a logged model that holds the Hugging Face folder
_REQUIREMENTS = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "accelerate", "numpy")
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}


def log_policy(
    folder: str, *, settings: Mapping[str, Any], params: Mapping[str, Any], run_id: str | None = None
) -> ModelInfo:
    """Log a Hugging Face folder as a model that `mlflow models serve` can serve; no version yet. It is an output of the
    active run and of `run_id`, beside which MLflow lists it (None: the active run).

    The folder is kept as it is, beside the code that serves it: no pickle, no copy that another library wrote.
    `settings` are ServedPolicy's or, with a `system`, ServedChat's; their `example` becomes the input example. Raises
    ModelError for weights that are not safetensors.
    """
    pickles = _pickles(folder)
    if pickles or not list(Path(folder).glob("*.safetensors")):
        raise ModelError(
            f"the policy in {folder} is not safetensors only ({', '.join(pickles) or 'no *.safetensors'}): load it and "
            "save it again with save_pretrained()"
        )
    described = {key: redact(str(value)) for key, value in params.items()}
    made = mlflow.initialize_logged_model("policy", source_run_id=run_id, params=described)
    if run_id is not None:
        mlflow.MlflowClient().log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
    chat, longest = is_chat(settings), settings["max_new_tokens"]
    asked: Any = {"messages": settings["example"], "max_completion_tokens": longest}
    logged: ModelInfo = mlflow.pyfunc.log_model(
        model_id=made.model_id,
        python_model=str(_CHAT_SERVER if chat else _SERVER),
        artifacts={_WEIGHTS: folder},
        signature=chat_signature() if chat else signature(settings),
        input_example=asked if chat else ([settings["example"]], {"max_new_tokens": longest}),
        pip_requirements=requirements(),
        model_config=dict(settings),
    )
    return logged


def signature(settings: Mapping[str, Any]) -> ModelSignature:
    """Texts in, texts out, and the parameters of a request."""
    from tasks.registry.policy_server import PARAMETERS

    defaults = {name: settings.get(name, default) for name, (_, default, _) in PARAMETERS.items()} | {"stop": None}
    params = [ParamSpec(name, kind, defaults[name]) for name, (kind, _, _) in PARAMETERS.items()]
    text = Schema([ColSpec("string")])  # unnamed: a list, or a table's first column
    return ModelSignature(inputs=text, outputs=text, params=ParamSchema(params))


def is_chat(settings: Mapping[str, Any]) -> bool:
    """Whether these are settings of ServedChat."""
    return "system" in settings


def chat_signature() -> ModelSignature:
    """A request and an answer of OpenAI's chat completions, as far as ServedChat knows them."""
    from tasks.registry.chat_server import OPTIONS

    text, count, anything = DataType.string, DataType.long, AnyType()  # type: ignore[no-untyped-call]
    message = Object([Property("role", text), Property("content", text)])
    choice = Object([Property("index", count), Property("message", message), Property("finish_reason", text)])
    counts = Object([Property(f"{what}_tokens", count) for what in ("prompt", "completion", "total")])
    answer: dict[str, Any] = {"id": text, "object": text, "created": count, "model": text}
    answer |= {"choices": Array(choice), "usage": counts}
    options = [
        ColSpec(anything if kind == "any" else kind, name, required=False) for name, (kind, _) in OPTIONS.items()
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(Array(message), "messages"), *options]),
        outputs=Schema([ColSpec(kind, name) for name, kind in answer.items()]),
    )


def form(recipe: Recipe) -> dict[str, str | None]:
    """ServedPolicy's settings for what is around a question in the recipe's prompts."""
    from rlhf_lib.data.dialogue import ASSISTANT, HUMAN

    prompts = recipe.data.prompts
    turn = f"{HUMAN} {{query}}{ASSISTANT}" if prompts.query.kind == "dialogue" else None
    return {"template": prompts.template, "turn": turn}


def question(query: str) -> str:
    """The query's last human turn, or the query, short enough for an example."""
    from rlhf_lib.data.dialogue import ASSISTANT, HUMAN

    turn = query.rpartition(HUMAN)[2].partition(ASSISTANT)[0]
    return shorten(turn, 80, placeholder="") or "Hello!"


def requirements() -> list[str]:
    """Exact pins of the packages that serving needs, without local build labels (+cpu), which no index has."""
    return [f"{package}=={Version(installed(package)).public}" for package in _REQUIREMENTS]


def resolve_model(name: str) -> str:
    """A registry URI (models:/NAME@champion, models:/NAME/3) as a local folder that `from_pretrained` loads, weights
    and tokenizer; any other name as it is. Raises ModelError for a version that isn't there, isn't a policy of ours,
    or holds a pickle: people who can upload to the registry must not be able to run code here.
    """
    return fetch(name)[1] if name.startswith("models:/") else name


def fetch(name: str) -> tuple[str, str]:
    """Folders of a registry URI's MLflow model and of the Hugging Face model in it. Raises ModelError as
    `resolve_model`."""
    try:
        root = mlflow.artifacts.download_artifacts(artifact_uri=name)
        flavor = mlflow.models.Model.load(root).flavors.get("python_function", {})
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model {name} is not available from the registry at {mlflow.get_registry_uri()} ({reason}): give "
            "models:/NAME@ALIAS or models:/NAME/VERSION of a registered version"
        ) from error
    if pickles := _pickles(root):
        raise ModelError(
            f"model {name} holds pickles ({', '.join(pickles)}), which run their uploader's code when they are "
            "loaded: name another version, or load it where you trust it and register it as safetensors"
        )
    weights = flavor.get("artifacts", {}).get(_WEIGHTS)
    if weights is None:
        raise ModelError(f"model {name} holds no Hugging Face folder: only policies that this pipeline registered do")
    folder = (Path(root) / weights["path"]).resolve()
    if not folder.is_relative_to(Path(root).resolve()):
        raise ModelError(f"model {name} points outside its own folder ({weights['path']}): name another version")
    return root, str(folder)


def settings(root: str) -> dict[str, Any]:
    """What a fetched MLflow model's ServedPolicy or ServedChat was registered with."""
    return dict(mlflow.models.Model.load(root).flavors["python_function"]["config"])


def _pickles(folder: str | Path) -> list[str]:
    """Names of the files below that are pickles by their suffix, or by their first bytes whatever their suffix."""
    found = []
    for file in sorted(f for f in Path(folder).rglob("*") if f.is_file() and f.suffix != ".safetensors"):
        with file.open("rb") as opened:
            start = opened.read(2)
        if file.suffix in _PICKLES or (start[:1] == b"\x80" and start[1:] <= b"\x05"):
            found.append(file.name)
    return found


def champion(name: str) -> str | None:
    """The version with the champion alias; None if there is none."""
    models = mlflow.MlflowClient().search_registered_models(filter_string=f"name='{name}'")
    version = models[0].aliases.get(CHAMPION) if models else None
    return None if version is None else str(version)  # SQL stores give numbers, servers strings


def create_version(
    name: str, logged: ModelInfo, *, run_id: str, about: str, card: str, tags: Mapping[str, str]
) -> ModelVersion:
    """Register a logged model as the next version of `name`, made by the run `run_id`, and as its challenger."""
    client = mlflow.MlflowClient()
    if not client.search_registered_models(filter_string=f"name='{name}'"):
        client.create_registered_model(name, description=about or None)
    version = client.create_model_version(
        name,
        source=logged.model_uri,
        run_id=run_id,
        model_id=logged.model_id,
        tags=dict(tags),
        description=card if len(card) <= DESCRIPTION_LIMIT else card[: DESCRIPTION_LIMIT - 1] + "…",
    )
    # by which MLflow's list of runs names the version; its server sets it, a store without one doesn't
    named = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: named})
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    return version
