"""A registry with what the playground is for: two versions of a chat policy, their reference, and a policy that
continues texts; and the prompts of their evaluation."""

import mlflow
import pytest
import yaml
from chat_models import chat_folder
from registered import make_recipe, register
from registered_chat import chat_recipe

from tasks.tracking.runs import PipelineRun

JUDGES = {"judges": {"brief": {"kind": "function", "function": "registered:brevity"}}}
HELD_OUT = ["\n\nHuman: hello\n\nAssistant:", "\n\nHuman: hi!\n\nAssistant: Hi.\n\nHuman: and now?\n\nAssistant:"]


def run_of(recipe, root, folders, folder, reference):
    """Register the folder as a run of the recipe would; its version is the next one."""
    with mlflow.start_run() as parent:
        mlflow.log_text(yaml.safe_dump(recipe.model_dump(mode="json")), "recipe.yaml")
        with mlflow.start_run(nested=True):
            mlflow.log_table({"query": HELD_OUT, "response_after": ["well"] * len(HELD_OUT)}, "before_after.json")
        run = PipelineRun(run_dir=str(root / "runs"), parent_run_id=parent.info.run_id)
        register(run, folders | {"plain": reference}, folder, recipe, model=reference)


@pytest.fixture(scope="module", name="registry")
def a_registry(tmp_path_factory, mlflow_store, folders):
    """Folders by the playground's ids, in a store that a file's tests share: MLflow's URI is `store`'s."""
    root = tmp_path_factory.mktemp("playground")
    made = {
        "letters/1": str(chat_folder(root / "one", seed=30)),
        "letters/2": str(chat_folder(root / "two", seed=31)),
        "letters/1/reference": str(chat_folder(root / "reference", seed=39)),
        "plain/1": folders["lettered"],
        "plain/1/reference": folders["plain"],
    }
    with mlflow_store(root), pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        chat = chat_recipe(evaluation=JUDGES)
        run_of(chat, root, folders, made["letters/1"], made["letters/1/reference"])
        run_of(chat, root, folders, made["letters/2"], made["letters/1/reference"])
        run_of(make_recipe(name="plain"), root, folders, made["plain/1"], made["plain/1/reference"])
        yield made | {"store": mlflow.get_tracking_uri()}
