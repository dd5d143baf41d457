"""Where runs are stored and which servers are used: as the user configured, else embedded stores in the run folder."""

from __future__ import annotations

import base64
import http.client
import os
import socket
import sys
import tomllib
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from urllib.parse import unquote, urlparse

from rlhf_lib.errors import EnvironmentFault

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_CLIENT_MAX_RETRIES": "6",  # two minutes for a server that is started again; the default 5 make one
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # a busy machine takes longer than the default 20
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # of every stage, to the pages for chats and traces
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # ours are enough
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
# libgomp's threads wait at a barrier by spinning, and keep the core from another run that could use it: two runs at
# once were several times slower than one (docs/log.md). libgomp reads this when torch is loaded.
SPIN_COUNT = "1000"


def run_dir() -> Path:
    """The run folder: $RLHF_RUN_DIR, or `runs` in the working directory."""
    return Path(os.environ.get("RLHF_RUN_DIR", "runs")).absolute()


def configure() -> None:
    """Set defaults for what isn't set: MLflow on SQLite and Prefect's home in the run folder, no telemetry, no spinning
    threads."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():  # in a log file a bar is a flood
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{run_dir()}/mlflow.db")
    if login := _without_login("MLFLOW_TRACKING_URI"):
        for name, part in zip(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), login, strict=True):
            os.environ.setdefault(name, part)
    if login := _without_login("PREFECT_API_URL"):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", ":".join(login))
    if "PREFECT_HOME" not in os.environ and prefect_api() is None:
        os.environ["PREFECT_HOME"] = str(run_dir() / "prefect")
        # importing it makes that folder only beside an existing one; starting it makes both
        warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")


def _without_login(setting: str) -> tuple[str, str] | None:
    """Remove user and password from a server's address, which appears in links, tags and messages, and return them;
    None if it has none."""
    parsed = urlparse(os.environ.get(setting, ""))
    if parsed.scheme not in ("http", "https") or parsed.username is None:
        return None
    os.environ[setting] = parsed._replace(netloc=parsed.netloc.rpartition("@")[2]).geturl()
    return unquote(parsed.username), unquote(parsed.password or "")


def prefect_api() -> str | None:
    """The Prefect server that the user configured, in the environment or the active profile; None: an embedded one."""
    return prefect_setting("PREFECT_API_URL")


def prefect_setting(name: str) -> str | None:
    """A Prefect setting from the environment or the active profile, without importing Prefect."""
    if name in os.environ:
        return os.environ[name]
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return None
    active = os.environ.get("PREFECT_PROFILE", profiles.get("active"))
    value = profiles.get("profiles", {}).get(active, {}).get(name)
    return None if value is None else str(value)


def check() -> None:
    """Check that the run folder is writable and that the configured servers answer.

    Raises EnvironmentFault naming the folder or the server.
    """
    if "MLFLOW_TRACKING_URI" not in os.environ:
        raise EnvironmentFault(
            "nothing is configured: use the rlhf command, or call flows.cli.configure.configure() first"
        )
    folder = run_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise EnvironmentFault(
            f"run folder {folder} can't be written ({error.strerror}): fix its permissions, or set --run-dir"
        ) from None
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if _answers("MLflow", uri, "MLFLOW_TRACKING_URI"):
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        user, password = (os.environ.get(f"MLFLOW_TRACKING_{part}", "") for part in ("USERNAME", "PASSWORD"))
        _admits(
            f"the MLflow server at {uri}",
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default",
            _basic(f"{user}:{password}") if user else f"Bearer {token}" if token else None,
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN)",
        )
    elif not uri.startswith(("sqlite:", "file:")) and "://" in uri:
        _connects(uri)
    api = prefect_api()
    if api is not None and _answers("Prefect", api, "PREFECT_API_URL"):
        login, key = prefect_setting("PREFECT_API_AUTH_STRING"), prefect_setting("PREFECT_API_KEY")
        _admits(
            f"the Prefect server at {api}",
            f"{api.rstrip('/')}/admin/version",
            _basic(login) if login else f"Bearer {key}" if key else None,
            "PREFECT_API_AUTH_STRING to USER:PASSWORD as the server has it (Prefect Cloud: PREFECT_API_KEY)",
        )


def _answers(server: str, uri: str, setting: str) -> bool:
    """Whether `uri` is a server's. Raises EnvironmentFault if nothing listens there."""
    parsed = urlparse(uri)
    if parsed.scheme not in ("http", "https") or parsed.hostname is None:
        return False
    try:
        socket.create_connection((parsed.hostname, parsed.port or (443 if parsed.scheme == "https" else 80)), 5).close()
    except OSError as error:
        raise EnvironmentFault(
            f"the {server} server at {uri} doesn't answer ({error}): start it, or unset {setting} for an embedded one"
        ) from None
    return True


def _basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def _admits(server: str, page: str, authorization: str | None, settings: str) -> None:
    """Raise EnvironmentFault if the server refuses the login; any other answer is left to its client."""
    request = urllib.request.Request(page, headers={"Authorization": authorization} if authorization else {})
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            what = "the login" if authorization else "requests without a login"
            raise EnvironmentFault(f"{server} refuses {what} ({error.code}): set {settings}") from None
    except (OSError, http.client.HTTPException):
        pass


def _connects(uri: str) -> None:
    """Raise EnvironmentFault if MLflow's database can't be opened; MLflow itself would retry for minutes."""
    import sqlalchemy

    try:
        sqlalchemy.create_engine(uri).connect().close()
    except ImportError as error:
        raise EnvironmentFault(
            f"MLFLOW_TRACKING_URI {uri}: its driver is missing ({error.name}): pip install 'ppo-rlhf[postgres]'"
        ) from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = " ".join(str(error).split("\n(Background")[0].split())
        raise EnvironmentFault(
            f"MLflow's database {uri} can't be opened ({reason}): fix MLFLOW_TRACKING_URI, or start the database"
        ) from None
