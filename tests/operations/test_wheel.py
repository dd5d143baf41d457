"""The project as a package: what its wheel holds, and a run by a wheel installed where there is no checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import yaml
from packaging.version import Version

from rlhf_lib.recipe import shipped
from tests.operations.test_docs_walk import SMALL, with_

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "tasks", "rlhf_lib")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools would take up what an older build left in the checkout."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "prefect.yaml"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(made)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", str(source), *options], check=True)
    [found] = made.iterdir()
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> SimpleNamespace:
    """A new environment with the wheel in it, its folder of scripts, and an empty working directory.

    The dependencies are this environment's: it is named in a .pth file, and Python doesn't read the .pth files of what
    another one names, so an editable install of the project stays outside.
    """
    folder = tmp_path_factory.mktemp("installed")
    place, work = folder / "venv", folder / "work"
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(place)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin/python")]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--quiet", str(wheel)], check=True)
    [packages] = place.glob("lib/*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work.mkdir()
    environment = {"PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RLHF_CACHE_DIR": os.environ["RLHF_CACHE_DIR"]}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    return SimpleNamespace(packages=packages, work=work, run=run)


def printed(run: Callable[..., str], program: str) -> str:
    return run("python", "-c", program).strip()


def test_every_file_of_the_packages_is_in_the_wheel(wheel) -> None:
    files = [file for name in PACKAGES for file in (ROOT / name).rglob("*") if file.is_file()]
    expected = {
        str(file.relative_to(ROOT)) for file in files if file.name[0] != "." and "__pycache__" not in file.parts
    }
    there = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert there == expected
    assert {"flows/servers/prefect.yaml", "rlhf_lib/recipes/embedded.yaml"} <= there


def test_what_runs_is_the_wheels(installed) -> None:
    program = "import rlhf_lib, flows, tasks; print(*(m.__file__ for m in (rlhf_lib, flows, tasks)), sep='\\n')"
    for name, file in zip(("rlhf_lib", "flows", "tasks"), printed(installed.run, program).splitlines(), strict=True):
        assert file == str(installed.packages / name / "__init__.py")
    assert printed(installed.run, "import rlhf_lib; print(rlhf_lib.__version__)") == VERSION
    assert installed.run("rlhf", "--version") == f"rlhf {VERSION}\n"


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"(?m)^## \[(.+?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text())
    assert headings[0] == VERSION
    assert headings == sorted(headings, key=Version, reverse=True)


def test_help_and_recipes_without_a_checkout(installed) -> None:
    assert "run a recipe end to end" in installed.run("rlhf", "--help")
    listed = installed.run("rlhf", "recipes")
    assert all(f"\n{name} " in listed for name in shipped())


def test_what_rlhf_up_deploys_without_a_prefect_yaml(installed) -> None:
    """The package's own, with flows that a worker elsewhere on this machine finds."""
    told = printed(
        installed.run,
        "from flows.servers import deployments; deployments.check_description(); print(deployments.description())",
    )
    assert told.startswith("no prefect.yaml here: deploying this release's")
    described = yaml.safe_load(Path(told.splitlines()[-1]).read_text())
    ours = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    assert [found["name"] for found in described["deployments"]] == [own["name"] for own in ours["deployments"]]
    for found, own in zip(described["deployments"], ours["deployments"], strict=True):
        assert found["entrypoint"] == f"{installed.packages}/{own['entrypoint']}"
    entrypoint = described["deployments"][0]["entrypoint"]
    loading = f"from prefect.flows import load_flow_from_entrypoint as load; print(load({entrypoint!r}).name)"
    assert printed(installed.run, loading).splitlines()[-1] == "rlhf"


@pytest.mark.slow
def test_embedded_runs_without_a_checkout(installed) -> None:
    command = with_("rlhf run embedded --run-dir own --summary run.json", SMALL).split()
    said = installed.run(*command)
    record = json.loads((installed.work / "run.json").read_text())
    assert record["recipe"] == "embedded"
    assert record["ppo"]["steps"] == 2
    assert record["model"]["version"] == "1"
    assert "registered" in said
    assert "\nrlhf ui " in said  # there is no Makefile
    [report] = (installed.work / "own").glob("work/*/evaluation/**/report.html")
    assert "<html" in report.read_text()
