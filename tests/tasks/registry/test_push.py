"""`rlhf push`: a registered version through huggingface_hub's own client to a hub on this machine."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import yaml
from hub_server import TOKEN, hub_server
from huggingface_hub import ModelCard
from registered import make_recipe, own_store, policy_folders, register  # noqa: F401
from tiny_models import one_thread  # noqa: F401

from flows import cli

ROOT = Path(__file__).parents[3]
RUN = """
import contextlib, io, json, os
from flows import cli
found = []
for words, token in json.loads(os.environ["COMMANDS"]):
    os.environ["HF_TOKEN"] = token or ""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = cli.main(["push", *words])
    found.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""


@pytest.fixture
def letters(store, folders):
    """A champion of a recipe whose base model and prompts are the hub's."""
    prompts = {"dataset": "Anthropic/hh-rlhf", "template": "{query}"}
    recipe = make_recipe(data={"prompts": prompts}, policy={"model": "openai-community/gpt2"})
    mlflow.log_text(yaml.safe_dump(recipe.model_dump(mode="json")), "recipe.yaml")
    register(store, folders, folders["plain"], recipe, model=folders["plain"])
    return Path(folders["plain"])


@pytest.fixture(scope="module")
def hub():
    with hub_server() as running:
        yield running


def rlhf(hub: str, *commands: tuple[list[str], str | None]) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of `rlhf push` with the words and the token of each command: in a process of their own,
    since the client reads its address when it is imported."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    environment |= {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": os.getcwd()}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "COMMANDS": json.dumps(commands)}
    done = subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return [tuple(found) for found in json.loads(done.stdout.splitlines()[-1])]


def test_a_pushed_version_is_its_folder_and_its_card_and_refusals_are_a_line(letters, hub):
    first = ["letters", "me/letters", "--private", "--revision", "v1"]
    refused = [
        (["letters", "me/letters"], None, "no token for http"),
        (["letters", "me/letters"], "hf_" + "9" * 34, "me/letters: the token isn't accepted"),
        (
            ["letters", "you/letters"],
            TOKEN,
            "you/letters: the token may not write there: name a repository of your own",
        ),
    ]
    done, again, *refusals = rlhf(
        hub.address, (first, TOKEN), (["letters/1", "me/letters"], TOKEN), *(command[:2] for command in refused)
    )
    assert done == again == (0, f"{hub.address}/me/letters/commit/{'a' * 40}\n", "")
    for (status, out, error), (_, _, told) in zip(refusals, refused, strict=True):
        assert (status, out) == (2, "")
        assert error.startswith(f"rlhf: error: {told}")
        assert error.count("\n") == 1
        assert "hf_" not in error
    assert hub.private["me/letters"] is True
    assert hub.messages[-1] == "letters 1"
    assert "README.md" in hub.files["me/letters@main"]
    files = dict(hub.files["me/letters@v1"])
    card = ModelCard(files.pop("README.md").decode())
    own = {str(f.relative_to(letters)): f.read_bytes() for f in letters.rglob("*") if f.is_file()}
    assert files == own
    assert "model.safetensors" in files
    assert card.data.to_dict() | {"model-index": None} == {
        "base_model": "openai-community/gpt2",
        "datasets": ["Anthropic/hh-rlhf"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ppo", "rlhf"],
        "model-index": None,
    }
    results = {found.metric_type: found.metric_value for found in card.data.eval_results}
    assert results == {"reward_delta": 0.5, "kl": 4.0}  # as it was registered
    assert card.text.lstrip().startswith("# letters\n")
    assert "## Intended use" in card.text
    assert "Samples and report" not in card.text  # a link to a server that the hub's readers haven't


def test_a_hub_that_does_not_answer(letters):
    with socket.socket() as bound:  # at which nothing listens
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        [(status, _, error)] = rlhf(address, (["letters", "me/letters"], TOKEN))
    assert status == 2
    assert error.startswith(f"rlhf: error: {address} can't be asked: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nobody", "me/letters"], "there is no registered model named nobody: the registry has letters"),
        (["letters/7", "me/letters"], "letters has no version 7"),
        (["letters", "me/letters/1"], "'me/letters/1' can't be a repository's name (give USER/NAME)"),
    ],
)
def test_mistakes_are_found_before_the_hub_is_asked(letters, words, error, capsys):
    assert cli.main(["push", *words]) == 2
    assert error in capsys.readouterr().err


def test_a_dry_run_lists_files_and_the_head_of_the_card(letters, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert cli.main(["push", "letters", "me/letters", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("letters 1 would go to me/letters:\n")
    weights = (letters / "model.safetensors").stat().st_size
    assert f" {weights / 1e6:.3g} MB  model.safetensors\n" in said
    assert "base_model: openai-community/gpt2" in said
    assert "## Intended use" not in said


def test_a_chat_template_makes_it_conversational(letters, store, folders, tmp_path, capsys):
    shutil.copytree(letters, tmp_path / "chat")
    (tmp_path / "chat/chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    register(store, folders, str(tmp_path / "chat"), make_recipe(), model=folders["plain"])
    assert cli.main(["push", "letters/2", "me/letters", "--dry-run"]) == 0
    assert "- conversational\n" in capsys.readouterr().out
