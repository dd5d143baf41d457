"""Models of unknown origin: no code of theirs runs here. Safetensors only, no remote code unless a recipe asks, and
what was uploaded to the registry is looked at before it is loaded."""

import ast
import pickle
import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from registered import make_policy

from rlhf_lib.errors import ModelError
from rlhf_lib.models import loading
from rlhf_lib.recipe import load_recipe, shipped
from tasks.registry import policies

ROOT = Path(__file__).parents[3]
SOURCES = [f for folder in ("flows", "tasks", "rlhf_lib", "benchmarks") for f in sorted((ROOT / folder).rglob("*.py"))]
# what unpickles, by the call's last two names; np.load does so only where it is asked to
UNPICKLERS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "dill.loads", "joblib.load", "jit.load", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load",
    "marshal.loads", "shelve.open",
}  # fmt: skip


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def calls(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            yield ".".join(ast.unparse(node.func).split(".")[-2:]), {k.arg: k.value for k in node.keywords}, node.lineno


def constant(value: ast.expr | None):
    return value.value if isinstance(value, ast.Constant) else None


def test_no_source_unpickles_or_trusts_by_itself():
    for file, (name, keywords, line) in ((source, call) for source in SOURCES for call in calls(source)):
        where = f"{file}:{line}: {name}"
        assert name not in UNPICKLERS, where
        if name == "torch.load":
            assert constant(keywords.get("weights_only")) is True, where
        for trust in ("trust_remote_code", "allow_pickle"):
            assert constant(keywords.get(trust)) is not True, where
        if name.endswith(".from_pretrained") and "Tokenizer" not in name and "Config" not in name:
            assert constant(keywords.get("use_safetensors")) is not False, where


def test_recipes_trust_no_code_by_default():
    for name in shipped():
        recipe = load_recipe(name)
        assert recipe.policy.trust_remote_code is recipe.reward.trust_remote_code is False
    recipe = load_recipe("embedded", ["policy.trust_remote_code=true"])
    assert recipe.policy.trust_remote_code is True


def test_remote_code_of_a_folder_is_not_run(tmp_path):
    folder, mark = Path(make_policy(tmp_path / "policy", seed=1)), tmp_path / "ran"
    config = folder / "config.json"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    (folder / "theirs.py").write_text(code + "from transformers import GPT2LMHeadModel as Theirs\n")
    mapped = '{"auto_map": {"AutoModelForCausalLM": "theirs.Theirs", "AutoConfig": "theirs.Theirs"}, '
    config.write_text(mapped + config.read_text().lstrip()[1:])
    loading.load_causal_lm(str(folder))  # GPT-2 is known without that code
    assert not mark.exists()


def test_pickled_weights_of_a_folder_are_not_opened(tmp_path):
    folder, mark = Path(make_policy(tmp_path / "policy", seed=1)), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(mark), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        loading.load_causal_lm(str(folder))
    assert not mark.exists()


@pytest.fixture(scope="module")
def logged(tmp_path_factory, mlflow_store):
    """A policy as the pipeline logs it, and its run."""
    root = tmp_path_factory.mktemp("registry")
    settings = {"seq2seq": False, "max_new_tokens": 4, "positions": 128, "end_ids": [0], "stop": None}
    settings |= {"template": None, "turn": None, "example": "hello", "trust_remote_code": False}
    with mlflow_store(root), pytest.MonkeyPatch.context() as patch, mlflow.start_run():
        patch.chdir(root)
        folder = make_policy(root / "policy", seed=1)
        made = policies.log_policy(folder, settings=settings, params={"base": "tiny"})
        yield Path(mlflow.artifacts.download_artifacts(made.model_uri, dst_path=str(root / "down")))


def upload(folder: Path, name: str) -> str:
    """Register a folder as anyone with access to the registry could."""
    client = mlflow.MlflowClient()
    run = mlflow.active_run().info
    mlflow.log_artifacts(str(folder), name)
    client.create_registered_model(name)
    version = client.create_model_version(name, source=f"{run.artifact_uri}/{name}", run_id=run.run_id)
    return f"models:/{name}/{version.version}"


@pytest.mark.parametrize("file", ["model/pytorch_model.bin", "python_model.pkl", "model/extra.dat"])
def test_an_uploaded_pickle_is_refused_with_a_reason(file, logged, tmp_path):
    folder, mark = shutil.copytree(logged, tmp_path / "uploaded"), tmp_path / "ran"
    inside = next(folder.rglob("model.safetensors")).parent if file.startswith("model/") else folder
    bad = inside / Path(file).name
    bad.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelError, match=rf"holds pickles \({bad.name}\).*register it as safetensors"):
        policies.resolve_model(upload(folder, Path(file).stem))
    assert not mark.exists()


def test_a_version_of_pickles_alone_is_refused_too(logged, tmp_path):
    folder = tmp_path / "sklearn"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors:\n  python_function: {loader_module: mlflow.sklearn}\n")
    (folder / "model.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(ModelError, match="holds pickles"):
        policies.resolve_model(upload(folder, "sklearn"))
    assert not (tmp_path / "ran").exists()


def test_a_version_that_points_elsewhere_is_refused(logged, tmp_path):
    folder = shutil.copytree(logged, tmp_path / "uploaded")
    model = (folder / "MLmodel").read_text()
    inside = next(folder.rglob("model.safetensors")).parent.relative_to(folder)
    assert f"path: {inside}" in model
    (folder / "MLmodel").write_text(model.replace(f"path: {inside}", "path: ../.."))
    with pytest.raises(ModelError, match="points outside its own folder"):
        policies.resolve_model(upload(folder, "elsewhere"))


def test_a_sound_version_resolves(logged):
    folder = policies.resolve_model(upload(logged, "sound"))
    assert loading.load_causal_lm(folder).config.n_layer == 2
