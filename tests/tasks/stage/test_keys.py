"""The keys of the stages: nothing that a stage's work may depend on changes without its key."""

import ast
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from tasks.stage import keys
from tasks.stage.keys import LIBRARIES, PACKAGES, STAGES, content_key, sources

ROOT = Path(__file__).parents[3]


def imported(module: str, seen: set[str]) -> set[str]:
    """The module and all of this project that it imports, read off the sources anew: at the top, inside functions, and
    the packages on the way; without what only a type checker reads."""
    if module in seen or module.split(".")[0] not in PACKAGES:
        return seen
    place = ROOT.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        return seen  # a name inside a module
    seen.add(module)
    if "." in module:
        imported(module.rpartition(".")[0], seen)
    tree = ast.parse(file.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in typing_only:
            for alias in node.names:
                imported(alias.name, seen)
        if isinstance(node, ast.ImportFrom) and node.module and node not in typing_only:
            imported(node.module, seen)
            for alias in node.names:
                imported(f"{node.module}.{alias.name}", seen)
    return seen


def path(module: str) -> Path:
    place = ROOT.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_whatever_module_a_stage_reaches_changes_its_key(stage, tmp_path, monkeypatch):
    reached = {path(module) for module in imported(stage.module, set())}
    files = sources(stage)
    assert path(stage.module) in reached <= set(files)
    copies = []
    for number, file in enumerate(files):
        copies.append(Path(shutil.copy(file, tmp_path / f"{number}-{file.name}")))
    monkeypatch.setattr(keys, "sources", lambda _: copies)
    key = keys._code.__wrapped__
    before = key(stage)
    for copy in copies:
        text = copy.read_bytes()
        copy.write_bytes(text + b"#")
        assert key(stage) != before, copy.name
        copy.write_bytes(text)
    assert key(stage) == before


def test_a_stage_reaches_what_was_once_forgotten():
    named = {stage.name: {str(file.relative_to(ROOT)) for file in sources(stage)} for stage in STAGES}
    assert {"rlhf_lib/models/trunk.py", "rlhf_lib/models/logprobs.py"} <= named["base_model"]
    assert "rlhf_lib/ppo/rollout.py" in named["reward_model"]
    assert "rlhf_lib/models/loading.py" in named["reward_checks"]
    assert "tasks/registry/policy_server.py" in named["registration"]
    assert not {name for name in named["data"] if name.startswith("rlhf_lib/ppo/")}  # not simply everything


@pytest.mark.parametrize("library", LIBRARIES)
def test_another_version_of_a_library_changes_every_key(library, monkeypatch):
    def newer(name: str) -> str:
        return "99.0" if name == library else version(name)

    key = keys._code.__wrapped__
    before = [key(stage) for stage in STAGES]
    monkeypatch.setattr(keys, "version", newer)
    assert not set(before) & {key(stage) for stage in STAGES}


def test_stages_have_names_and_modules_of_their_own():
    assert len({stage.name for stage in STAGES}) == len({stage.module for stage in STAGES}) == len(STAGES)
    assert len({stage.key("same inputs") for stage in STAGES}) == len(STAGES)


def test_content_key_changes_with_any_part():
    assert content_key({"a": 1}, ["b"]) == content_key({"a": 1}, ["b"])
    assert len({content_key({"a": 1}, ["b"]), content_key({"a": 2}, ["b"]), content_key({"a": 1}, ["c"])}) == 3
