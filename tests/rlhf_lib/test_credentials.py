"""What counts as a secret and where it is refused; and servers' logins kept out of their addresses."""

import logging
import os
import subprocess
import sys

import pytest

from flows import cli
from flows.orchestration import logs
from flows.servers import environment
from rlhf_lib.credentials import holders, redact, refusal
from rlhf_lib.errors import ModelError, RecipeError
from rlhf_lib.recipe import load_recipe, shipped
from tasks.tracking.runs import redact_error

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz12345678"


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("postgresql://rlhf:S3CRET@db.example/mlflow", "postgresql://rlhf:***@db.example/mlflow"),
        ("https://me:p@ss/w0rd@host/x.jsonl and more", "https://me:***@host/x.jsonl and more"),
        ("https://S3CRET@github.com/me/x.git", "https://***@github.com/me/x.git"),
        ("redis://:S3CRET@host/0", "redis://:***@host/0"),
        ("s3://AKIAIOSFODNN7EXAMPLE:wJalr/XUtn@bucket/data", "s3://***:***@bucket/data"),
        ("https://host/x.jsonl?a=1&token=S3CRET&b=2", "https://host/x.jsonl?a=1&token=***&b=2"),
        ("https://b.s3.example/x?X-Amz-Signature=S3CRET", "https://b.s3.example/x?X-Amz-Signature=***"),
        ("https://account.blob.example/x?sv=2022&sig=S3%2BCRET", "https://account.blob.example/x?sv=2022&sig=***"),
        ("host=db user=rlhf password=S3CRET dbname=x", "host=db user=rlhf password=*** dbname=x"),
        (f"/models/{TOKEN}/gpt2", "/models/***/gpt2"),
        ("ghp_" + "a" * 36, "***"),
    ],
)
def test_secrets_are_covered_and_the_rest_stays(text, covered):
    assert redact(text) == covered
    assert redact(covered) == covered


@pytest.mark.parametrize(
    "text",
    [
        "models:/embedded@champion",
        "Anthropic/hh-rlhf",
        "https://host:8080/path@v2/x.jsonl?split=train&page=3",
        "postgresql://rlhf@127.0.0.1:5432/mlflow",
        "ssh://git@github.com/me/project.git",
        "git@github.com:me/project.git",
        "Human: what is the key to a token economy? Assistant: trust, at 5://7",
        "s3://bucket/prompts.jsonl",
        "/data/hf_models/gpt2",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


def test_values_of_variables_named_as_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "plain-looking")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "operator:open-sesame")
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://rlhf:db-word@h/prefect")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/token")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-ish")
    monkeypatch.setenv("A_KEY", "the")
    assert redact("it was plain-looking, open-sesame and db-word") == "it was ***, *** and ***"
    assert redact("the false-ish /home/me/token") == "the false-ish /home/me/token"


def test_the_key_is_named_and_the_secret_is_not():
    tree = {"data": {"prompts": {"dataset": "https://me:S3CRET@host/x"}}, "reward": {"terms": [{"model": TOKEN}]}}
    assert [key for key, _ in holders(tree)] == ["data.prompts.dataset", "reward.terms.0.model"]
    reason = refusal(tree, "recipe x")
    assert "S3CRET" not in reason
    assert TOKEN not in reason
    assert "data.prompts.dataset" in reason
    assert "HF_TOKEN" in reason
    assert refusal({"data": {"prompts": {"dataset": "imdb"}}}, "recipe x") is None


def test_no_shipped_recipe_looks_like_one():
    assert all(load_recipe(name) for name in shipped())


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["run", "embedded", "--set", "data.prompts.dataset=https://me:S3CRET@host/x"], "data.prompts.dataset"),
        (["run", "embedded", "--set", "policy.model=/models/hf_S3CRETS3CRETS3CRETS3CRET"], "policy.model"),
        (["run", "embedded", "--set", "ppo.eval_texts=[hello, 'https://h/?token=S3CRET']"], "ppo.eval_texts.1"),
        (["run", "embedded", "--set", "no.such.key=https://me:S3CRET@host/x"], "no.such.key"),
        (["show", "embedded", "--set", "description=postgresql://me:S3CRET@host/x"], "description"),
        (["run", "https://me:S3CRET@host/recipe.yaml"], "recipe"),
        (["collect", "embedded", "--out", "x.jsonl", "--policy", "https://me:S3CRET@host/m"], "policy"),
    ],
)
def test_the_command_line_refuses_it(arguments, key, capsys):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert "S3CRET" not in printed.out + printed.err
    assert f"{key} holds a password or token" in printed.err


def test_errors_carry_none():
    assert str(RecipeError("at https://me:S3CRET@host/x")) == "at https://me:***@host/x"
    assert isinstance(ModelError("x"), Exception)
    error = ValueError("postgresql://me:S3CRET@host/x", 3)
    redact_error(error)
    assert error.args == ("postgresql://me:***@host/x", 3)


def test_logs_carry_none(caplog):
    logs.redact_logs()
    logs.redact_logs()  # once is enough
    logger = logging.getLogger("somebody.else")
    logger.warning("connecting to %s", "https://me:S3CRET@host/x")
    try:
        raise ValueError("https://me:S3CRET@host/x")
    except ValueError:
        logger.exception("failed")
    logger.warning("%d arguments %s", 1, "fit")
    assert "S3CRET" not in caplog.text
    assert caplog.text.count("https://me:***@host/x") == 3  # the second with its source line
    assert "1 arguments fit" in caplog.text


def test_the_last_traceback_carries_none():
    program = "from flows.orchestration import logs; logs.redact_logs(); raise ValueError('https://me:S3CRET@host/x')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.endswith("ValueError: https://me:***@host/x\n")
    assert "S3CRET" not in result.stderr


def test_logins_leave_the_addresses(monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "")  # to be restored afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://rlhf:p%40ss@mlflow.example:5000/sub")
    monkeypatch.setenv("PREFECT_API_URL", "http://me:word@prefect.example/api")
    environment.configure()
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://mlflow.example:5000/sub"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("rlhf", "p@ss")
    assert os.environ["PREFECT_API_URL"] == "http://prefect.example/api"
    assert os.environ["PREFECT_API_AUTH_STRING"] == "me:word"


def test_the_form_refuses_a_login_by_its_pattern():
    """Prefect's API holds a triggered run's parameters against this schema before it stores them."""
    import jsonschema
    from prefect.utilities.callables import parameter_schema

    from flows.rlhf import rlhf

    schema = parameter_schema(rlhf).model_dump()
    jsonschema.validate({"overrides": ["policy.model=models:/x@champion", "data.prompts.dataset=s3://b/x"]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"overrides": ["data.prompts.dataset=https://me:S3CRET@host/x"]}, schema)
