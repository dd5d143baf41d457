"""compose.yaml by its rules: pinned images, nothing open to the network by itself, no secret written down."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
SERVICES = yaml.safe_load(TEXT)["services"]
EXAMPLE = dict(re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", (ROOT / ".env.example").read_text(), re.M))
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH_STRING|ACCESS_KEY|ROOT_USER")


def variables(text: str) -> dict[str, str]:
    """{variable: what stands in where it is unset} of a text's ${...}; the shell's own are $${...}."""
    return dict(re.findall(r"(?<!\$)\$\{(\w+)(:-[^}]*)?[^}]*\}", text))


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name):
    images = [SERVICES[name]["image"]]
    build = SERVICES[name].get("build")
    if isinstance(build, dict):
        images += re.findall(r"^FROM (\S+)", build["dockerfile_inline"], re.M)
        packages = re.search(r"pip install (.*)", build["dockerfile_inline"])[1].split()
        assert all("==" in package for package in packages if not package.startswith("-"))
    for image in images:
        tag = image.rpartition(":")[2]
        assert re.search(r"\d+[.-]\d+", tag), image
        assert "latest" not in tag


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_for_this_machine_unless_told_otherwise(name):
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("${BIND_ADDRESS:-127.0.0.1}:"), port
    assert "network_mode" not in SERVICES[name]
    assert "privileged" not in SERVICES[name]


def test_only_the_two_servers_are_published():
    assert {name for name, service in SERVICES.items() if service.get("ports")} == {"prefect", "mlflow"}


def test_no_secret_is_written_down():
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if SECRET.search(key):
                assert re.fullmatch(r"\$\{\w+(:[?-][^}]*)?\}", value), key
    for login in re.findall(r"://([^/@\s]+)@", TEXT):
        assert all(part.startswith("${") for part in login.split(":")[1:]), login
    for name, default in variables(TEXT).items():
        assert not (SECRET.search(name) and default.removeprefix(":-")), name
    for name, value in EXAMPLE.items():
        assert not (SECRET.search(name) and value), name


def test_the_example_has_every_variable_and_no_others():
    assert set(variables(TEXT)) == set(EXAMPLE)


def test_what_must_be_given_is_asked_for():
    required = set(re.findall(r"\$\{(\w+):\?", TEXT))
    assert required == {name for name, value in EXAMPLE.items() if not value} - {"HF_TOKEN"}


def test_both_servers_ask_for_a_login():
    assert "PREFECT_SERVER_API_AUTH_STRING" in SERVICES["prefect"]["environment"]
    assert "--app-name basic-auth" in SERVICES["mlflow"]["command"]


def test_what_it_mounts_is_there_and_env_stays_out_of_git():
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).is_file(), volume
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_versions_are_those_of_the_constraints():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text().lower(), re.M))
    assert f"prefecthq/prefect:{pins['prefect']}-" in TEXT
    assert f"mlflow/mlflow:v{pins['mlflow']}\n" in TEXT
    for package in ("psycopg2-binary", "flask-wtf", "boto3"):
        assert f"{package}=={pins[package]}" in TEXT.lower()
