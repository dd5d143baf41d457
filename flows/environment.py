"""Where runs, tracking and orchestration live: what the user configured, else embedded stores in the run folder."""

from __future__ import annotations

import os
import socket
import sys
import tomllib
import warnings
from pathlib import Path
from urllib.parse import urlparse

from rlhf_lib.errors import EnvironmentFault

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # a busy machine takes longer than the default 20
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # ours are enough
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def run_dir() -> Path:
    """The run folder: $RLHF_RUN_DIR, else `runs` under the working directory."""
    return Path(os.environ.get("RLHF_RUN_DIR", "runs")).absolute()


def configure() -> None:
    """Set what isn't set: MLflow on SQLite and Prefect's home in the run folder, no telemetry."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():  # in a log file a bar is a flood
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{run_dir()}/mlflow.db")
    if "PREFECT_HOME" not in os.environ and prefect_api() is None:
        os.environ["PREFECT_HOME"] = str(run_dir() / "prefect")
        # importing it makes that folder only beside an existing one; starting it makes both
        warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")


def prefect_api() -> str | None:
    """The Prefect server that the user configured, by environment or active profile; None: an embedded one."""
    if "PREFECT_API_URL" in os.environ:
        return os.environ["PREFECT_API_URL"]
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return None
    active = os.environ.get("PREFECT_PROFILE", profiles.get("active"))
    return profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")


def check() -> None:
    """The run folder can be written and the configured servers answer.

    Raises EnvironmentFault naming the folder or the server.
    """
    folder = run_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise EnvironmentFault(
            f"run folder {folder} can't be written ({error.strerror}): mend its permissions, or set --run-dir"
        ) from None
    _answers("MLflow", os.environ["MLFLOW_TRACKING_URI"], "MLFLOW_TRACKING_URI")
    if (api := prefect_api()) is not None:
        _answers("Prefect", api, "PREFECT_API_URL")


def _answers(server: str, uri: str, setting: str) -> None:
    parsed = urlparse(uri)
    if parsed.scheme not in ("http", "https") or parsed.hostname is None:
        return
    try:
        socket.create_connection((parsed.hostname, parsed.port or (443 if parsed.scheme == "https" else 80)), 5).close()
    except OSError as error:
        raise EnvironmentFault(
            f"the {server} server at {uri} doesn't answer ({error}): start it, or unset {setting} for an embedded one"
        ) from None
