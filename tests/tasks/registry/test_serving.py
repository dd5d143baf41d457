"""`rlhf serve`: every form of a request, refusals in a line, and versions registered before. The server's start, its
end and the printed command are tests/operations/test_docs_walk.py's."""

import json
import re
import shlex
from pathlib import Path

import mlflow
import pytest
import yaml
from fastapi.testclient import TestClient
from registered import PROMPTS, greedy_texts, make_recipe, policy_folders, register  # noqa: F401
from tiny_models import one_thread  # noqa: F401

from rlhf_lib.errors import ModelError
from tasks.registry import policies, serving, versions
from tasks.tracking.runs import PipelineRun

QUESTION = "where is my parcel?"  # of PROMPTS[0]


@pytest.fixture(scope="module", name="registered")
def one_version(tmp_path_factory, mlflow_store, folders):
    """Version 1 of `letters`, for dialogues, in a store that the tests share."""
    root = tmp_path_factory.mktemp("serving")
    recipe = make_recipe(data={"prompts": {"dataset": "local", "query": {"kind": "dialogue"}}})
    with mlflow_store(root), pytest.MonkeyPatch.context() as patch, mlflow.start_run() as parent:
        patch.chdir(root)
        mlflow.log_text(yaml.safe_dump(recipe.model_dump(mode="json")), "recipe.yaml")
        run = PipelineRun(run_dir=str(root / "runs"), parent_run_id=parent.info.run_id)
        register(run, folders, folders["plain"], recipe)
        yield Path(policies.fetch("models:/letters/1")[0])


@pytest.fixture(scope="module")
def client(registered):
    return TestClient(serving.application(serving.load("letters")))


def test_every_form_of_a_request_is_answered(client, folders):
    [answer, other] = greedy_texts(folders["plain"], [PROMPTS[0], PROMPTS[2]])
    for request in (
        {"inputs": QUESTION},
        {"inputs": [QUESTION]},
        {"inputs": [PROMPTS[0]]},
        {"instances": [QUESTION]},
        {"instances": [{"question": QUESTION}]},
        {"dataframe_split": {"columns": ["question"], "data": [[QUESTION]]}},
        {"dataframe_records": [{"question": QUESTION}]},
        {"inputs": [QUESTION], "params": {"temperature": 0}},
        {"inputs": [QUESTION], "params": None},
    ):
        got = client.post("/invocations", json=request)
        assert (got.status_code, got.json()) == (200, {"predictions": [answer]}), request
    both = client.post("/invocations", json={"inputs": [QUESTION, "hello"]})
    assert both.json() == {"predictions": [answer, other]}
    assert client.post("/invocations", json={"prompt": QUESTION, "temperature": 0}).json() == [answer]
    table = client.post("/invocations", content=f"question\n{QUESTION}\n", headers={"Content-Type": "text/csv"})
    assert table.json() == {"predictions": [answer]}
    assert client.get("/ping").status_code == 200


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (
            {"inputs": ["hi"], "params": {"temprature": 1}},
            "there is no parameter 'temprature': did you mean 'temperature'?",
        ),
        ({"inputs": ["hi"], "temperature": 1}, 'temperature belongs under params: {"params": {"temperature": 1}}'),
        ({"inputs": ["hi"], "parms": {}}, "there is no key 'parms' in a request: did you mean 'params'?"),
        (
            {"inputs": ["hi"], "params": {"temperature": "hot"}},
            "temperature is 'hot', but must be 0 (greedy decoding) or",
        ),
        ({"inputs": ["hi"], "params": [1]}, 'params is [1], but must be an object such as {"temperature": 0.7}'),
        ({"question": "hi"}, "the request asks nothing: put the questions under 'inputs', 'instances', "),
        ({"prompt": "hi", "top_k": -1}, "top_k is -1, but must be a whole number of at least 0 (0: off)"),
    ],
)
def test_what_mlflow_would_ignore_is_refused_in_a_line(request_, error):
    with pytest.raises(ValueError) as refused:
        serving.check_request(request_)
    assert str(refused.value).startswith(error)
    assert "\n" not in str(refused.value)


def test_refusals_over_http(client):
    refused = client.post("/invocations", json={"inputs": ["hi"], "params": {"temperature": -1}})
    assert refused.status_code == 400
    assert refused.json() == {
        "error_code": "INVALID_PARAMETER_VALUE",
        "message": "temperature is -1, but must be 0 (greedy decoding) or a larger number",
    }
    for request, error in (({"inputs": [" "]}, "the question is empty"), ({"inputs": [QUESTION * 40]}, "at most 127")):
        refused = client.post("/invocations", json=request)
        assert refused.status_code == 400
        assert error in refused.json()["message"]
        assert "stack_trace" not in refused.json()
    assert client.post("/invocations", content="{", headers={"Content-Type": "application/json"}).status_code == 400


def test_the_printed_command_asks_a_question_of_the_data(client):
    served = serving.load("models:/letters/1")
    words = shlex.split(serving.curl(served, 4300))
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:4300/invocations"]
    assert json.loads(words[-1]) == {"inputs": ["where is my parcel?"], "params": {"temperature": 0.7}}
    assert client.post("/invocations", json=json.loads(words[-1])).json()["predictions"] != [""]
    assert (
        policies.question("\n\nHuman: a\n\nAssistant: b\n\nHuman: it's " + "long " * 40 + "\n\nAssistant:")
        == ("it's " + "long " * 15).strip()
    )


def test_a_version_registered_before_its_settings_had_the_form(registered, folders):
    file = registered / "MLmodel"
    before, run = file.read_text(), versions.named("letters").tags["parent_run_id"]
    described = yaml.safe_load(before)
    for key in ("template", "turn", "example"):
        del described["flavors"]["python_function"]["config"][key]
    file.write_text(yaml.safe_dump(described))
    served = serving.load("letters")
    assert served.model.predict([QUESTION]) == greedy_texts(folders["plain"], PROMPTS[:1])
    assert '"inputs": ["Hello!"]' in serving.curl(served, 4300)
    mlflow.MlflowClient().delete_model_version_tag("letters", "1", "parent_run_id")
    with pytest.raises(ModelError, match="models:/letters/1: its run's recipe is gone"):
        serving.load("letters")
    mlflow.MlflowClient().set_model_version_tag("letters", "1", "parent_run_id", run)
    file.write_text(before)


def test_a_version_runs_none_of_the_code_that_came_with_it(registered, tmp_path):
    [code] = registered.glob("*.py")
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + code.read_text())
    assert serving.load("letters").model.predict([QUESTION])
    assert not (tmp_path / "ran").exists()


def test_versions_by_every_name(registered):
    for name in ("letters", "letters/1", "letters@champion", "models:/letters@challenger"):
        assert versions.uri_of(versions.named(name)) == "models:/letters/1"
        assert versions.address(name) == (name if ":" in name else "models:/letters/1")
    for name, error in (
        (
            "letters/9",
            "letters has no version 9: give letters/VERSION or letters@ALIAS (there are: 1, @challenger, @ch",
        ),
        (
            "letters@best",
            "letters has no version with the alias best: give letters/VERSION or letters@ALIAS (there are: ",
        ),
    ):
        with pytest.raises(ModelError, match=re.escape(error)):
            versions.named(name)
    mlflow.MlflowClient().delete_registered_model_alias("letters", "champion")  # the last test of this file
    with pytest.raises(ModelError, match="letters has no champion: give letters/VERSION"):
        versions.named("letters")
