"""What imports what: quick where it must be, one way, and declared."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "rlhf_lib")
HEAVY = ("torch", "transformers", "trl", "datasets", "mlflow", "matplotlib", "pandas")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after the statement, in a Python of its own."""
    code = f"import sys\n{statement}\nprint('\\n'.join({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines())


def imports(*folders: str) -> dict[str, Path]:
    """Top-level names that the folders' sources import, each with one of the files that do."""
    found: dict[str, Path] = {}
    for folder in folders:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                found |= {name.split(".")[0]: file for name in names}
    return found


@pytest.mark.parametrize("statement", ["import flows.cli", "from rlhf_lib.recipe import load_recipe"])
def test_the_command_line_imports_nothing_heavy(statement):
    assert not loaded_by(statement) & {"prefect", *HEAVY}


def test_deploying_the_flow_imports_nothing_heavy_but_prefect():
    loaded = loaded_by("import flows.rlhf")
    assert "prefect" in loaded
    assert not loaded & set(HEAVY)


def test_every_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    names = {canonicalize_name(Requirement(line).name) for line in project["dependencies"] + extras}
    owners = packages_distributions()
    for module, file in imports(*PACKAGES).items():
        if module not in sys.stdlib_module_names and module not in PACKAGES:
            assert names & {canonicalize_name(owner) for owner in owners.get(module, [module])}, (
                f"{file} imports {module}"
            )


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)) for pin in pins}
    assert {specifier.operator for specifier in pinned.values()} == {"=="}
    assert not [pin for pin in pinned.values() if "+" in pin.version]  # a build's local label: no index carries it
    own = [requirement for requirement in wanted if requirement.name == project["name"]]  # dev takes other extras in
    wanted += [
        Requirement(line) for one in own for extra in one.extras for line in project["optional-dependencies"][extra]
    ]
    for requirement in wanted:
        if requirement in own:
            continue
        version = pinned[canonicalize_name(requirement.name)].version
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_every_path_that_the_docs_name_exists():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    named = re.compile(r"`((?:flows|tasks|rlhf_lib|tests|benchmarks|deploy)/[\w./-]*)")
    missing = {
        f"{page.name}: {path}"
        for page in pages
        for path in named.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / path).exists() and path.isascii() and "NAME" not in path
    }
    assert not missing


def test_importing_a_package_sets_nothing():
    """`configure()` does, for the command line and the worker."""
    program = (
        "import os, sys, gc, atexit, logging\n"
        "before = dict(os.environ), sys.excepthook, logging.getLogRecordFactory()\n"
        "import flows.cli, flows.rlhf, flows.compare, flows.collect, tasks.stage.options\n"
        "after = dict(os.environ), sys.excepthook, logging.getLogRecordFactory()\n"
        "print(before == after)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"
