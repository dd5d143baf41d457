"""Secrets planted wherever a user could put them, and then looked for: in MLflow's store and artifacts, in Prefect's
database, in the run folder, on the terminal. tests/operations/test_postgres.py does the same on real servers
with logins."""

from functools import partial
from pathlib import Path

import mlflow
import pytest
from operated import settled
from registered import make_policy

from flows import cli

MARK = "PLANTED"
ENVIRONMENT = {
    "HF_TOKEN": f"hf_{MARK}abcdefghijklmnopqr",
    "AWS_ACCESS_KEY_ID": f"AKIA{MARK}",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}/aws+secret",
    "MLFLOW_S3_ENDPOINT_URL": f"https://key:{MARK}-s3@s3.example",
    "OPENAI_API_KEY": f"sk-{MARK}-abcdefghijklmnop",
    "TEAM_PASSWORD": f"{MARK} in plain words",
}
REFUSED = {
    "data.prompts.dataset": f"https://me:{MARK}@host/x.jsonl",
    "data.preferences.train.dataset": f"s3://AKIAIOSFODNN7EXAMPLE:{MARK}@bucket/pairs",
    "policy.model": f"/models/hf_{MARK}abcdefghijklmnop/gpt2",
    "reward.model": f"https://hub.example/model?token={MARK}",
    "description": f"db password={MARK}",
    "evaluation.perplexity.dataset": f"{MARK} in plain words",
}
LEAKY = f"""
import logging, os

def score(queries, responses):
    logging.getLogger("leaky").warning("with %s", os.environ["HF_TOKEN"])
    print("nothing")
    raise ValueError("no answer from https://me:{MARK}-url@scores.example for " + os.environ["TEAM_PASSWORD"])
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory, prefect_server, mlflow_store):
    """A run that fails of a reward which tells all it knows, and the command lines that are refused; what is left."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import LogSort
    from prefect.settings import get_current_settings

    root = tmp_path_factory.mktemp("secrets")
    policy = make_policy(root / "policy", seed=1)
    (root / "leaky_reward.py").write_text(LEAKY)
    settings = {
        "data.prompts.limit": 40,
        "data.preferences": "null",
        "policy.train": "null",
        "policy.model": policy,
        "reward.kind": "function",
        "reward.terms": "null",
        "reward.function": "leaky_reward:score",
        "generation.max_new_tokens": 4,
    }
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with mlflow_store(root / "store"), pytest.MonkeyPatch.context() as patch, get_client(sync_client=True) as client:
        patch.setenv("RLHF_RUN_DIR", str(root / "runs"))
        patch.syspath_prepend(root)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        known = {run.id for run in client.read_flow_runs()}
        codes = {key: cli.main(["run", "embedded", "--set", f"{key}={value}"]) for key, value in REFUSED.items()}
        assert {run.id for run in client.read_flow_runs()} == known  # refused before there was a run
        assert cli.main(["run", "embedded", *options]) in (2, 3)
        latest = partial(client.read_logs, limit=200, sort=LogSort.TIMESTAMP_DESC)
        settled(lambda: any("scores.example" in log.message for log in latest()), "the failure in the server's log")
        run = mlflow.search_runs(search_all_experiments=True, filter_string="tags.recipe = 'embedded'")
        database = str(get_current_settings().server.database.connection_url.get_secret_value())
    prefect = Path(database.partition("///")[2].split("?")[0])
    files = [f for place in (root / "store", root / "runs") for f in place.rglob("*") if f.is_file()]
    files += prefect.parent.glob(f"{prefect.name}*")
    return codes, run, {str(file): file.read_bytes() for file in files}


def test_refused_by_key(planted):
    assert set(planted[0].values()) == {2}


def test_nothing_is_stored(planted):
    _, run, kept = planted
    assert any(name.endswith("mlflow.db") for name in kept)
    assert any(name.endswith("recipe.yaml") for name in kept)
    assert any(b"https://me:***@scores.example" in text for name, text in kept.items() if "mlflow.db" in name)
    assert any(b"https://me:***@scores.example" in text for name, text in kept.items() if "mlflow" not in name)
    assert not [name for name, text in kept.items() if MARK.encode() in text]
    told = "reward.function leaky_reward:score raised ValueError: no answer from https://me:***@scores.example for ***"
    assert run["tags.failure"].iloc[0].split("\n")[0] == told


def test_nothing_is_told(planted, capfd):
    """The module's fixture ran with this capture off; another refusal and its words."""
    for key, value in REFUSED.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TEAM_PASSWORD", ENVIRONMENT["TEAM_PASSWORD"])
            assert cli.main(["run", "embedded", "--set", f"{key}={value}"]) == 2
    printed = capfd.readouterr()
    assert MARK not in printed.out + printed.err
    assert all(key in printed.err for key in REFUSED)
