"""OpenAI's API of `rlhf serve`, asked by OpenAI's client."""

import json
import os
import re
import shlex
import subprocess
import sys

import httpx
import mlflow
import openai
import pytest
from fastapi.testclient import TestClient
from operated import ROOT
from registered import policy_folders  # noqa: F401
from registered_chat import ASK, LATER, LIMIT, one_chat_version, spelt_out  # noqa: F401
from tiny_models import one_thread  # noqa: F401

from tasks.registry import serving


@pytest.fixture(scope="module")
def app(chat):
    return serving.application(serving.load("letters"))


@pytest.fixture(scope="module")
def http(app):
    return TestClient(app)


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url="http://testserver/v1", api_key="any", http_client=http, max_retries=0)


def test_a_completion(chat, client):
    text, ids, length = spelt_out(chat, ASK)
    made = client.chat.completions.create(model="letters", messages=ASK)
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == (text, "stop")
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (length, len(ids))
    assert made.model == "letters/1"
    made = client.chat.completions.create(model="letters/1", messages=LATER, max_completion_tokens=3)
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == (spelt_out(chat, LATER, 3)[0], "length")
    sampled = client.chat.completions.create(
        model="letters", messages=ASK, temperature=1.5, top_p=1, seed=17, stop="\0"
    )
    assert sampled.choices[0].message.content == spelt_out(chat, ASK, temperature=1.5, seed=17)[0]


def test_a_stream(chat, client):
    asked = {"model": "letters", "messages": ASK, "stream": True}
    text, ids, length = spelt_out(chat, ASK)
    pieces = list(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
    said = [piece.choices[0].delta.content for piece in pieces[:-1]]
    assert "".join(filter(None, said)) == text
    assert pieces[-2].choices[0].finish_reason == "stop"
    assert (pieces[-1].usage.prompt_tokens, pieces[-1].usage.completion_tokens) == (length, len(ids))
    assert [piece for piece in client.chat.completions.create(**asked) if piece.usage] == []
    stop = text[10:12]
    pieces = client.chat.completions.create(**asked, stop=[stop, "zz"])
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text.split(stop)[0]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["letters"]
    assert client.models.retrieve("letters").owned_by == "rlhf"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here: there is letters"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"n": 2}, "n is 2, but must be 1: a request has one answer"),
        ({"messages": []}, "messages is empty: give "),
        (
            {"messages": [*ASK, {"role": "assistant", "content": "Well"}]},
            "the last message is the assistant's: end with",
        ),
        ({"messages": [{"role": "user", "content": "hello " * 100}], "stream": True}, "the conversation has 4"),
    ],
)
def test_refusals_are_a_line(client, more, error):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "letters", "messages": ASK} | more)
    message = refused.value.body["message"]
    assert message.startswith(error)
    assert "\n" not in message


def test_refusals_that_no_client_of_openais_meets(http, client):
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt' here: there is letters"):
        client.chat.completions.create(model="gpt", messages=ASK)
    for body, error in (("{", "the request is no JSON: "), ("[]", "the request is no object: give ")):
        refused = http.post("/v1/chat/completions", content=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith(error)


def test_invocations_take_the_same_request(chat, http):
    answer = http.post("/invocations", json={"messages": ASK})
    assert answer.json()["choices"][0]["message"]["content"] == spelt_out(chat, ASK)[0]
    table = http.post("/invocations", json={"dataframe_records": [{"messages": ASK}, {"messages": LATER}]})
    texts = [made["choices"][0]["message"]["content"] for made in table.json()["predictions"]]
    assert texts == [spelt_out(chat, ASK)[0], spelt_out(chat, LATER)[0]]
    for request, error in (
        ({"inputs_": ["hi"]}, "there is no key 'inputs_' in a request"),
        (
            {"messages": ASK, "stream": True},
            "stream: MLflow's /invocations has no stream, but /v1/chat/completions has",
        ),
        ({"messages": [{"role": "user", "content": "hello " * 100}]}, "the conversation has 4"),
    ):
        refused = http.post("/invocations", json=request)
        assert refused.status_code == 400
        assert refused.json()["message"].startswith(error)


def test_rlhf_serve(chat, tmp_path):
    """The command itself, the request that it prints, and OpenAI's client on the address that it names."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve", "letters", "--port", "0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "log").open("w"),
        text=True,
    )
    try:
        named, command = (server.stdout.readline() for _ in range(2))
        base = re.search(r"base_url (\S+), model letters", named)[1]
        with openai.OpenAI(base_url=base, api_key="any", http_client=httpx.Client(trust_env=False)) as client:
            pieces = list(client.chat.completions.create(model="letters", messages=ASK, stream=True))
            words = shlex.split(command)
            asked = httpx.post(words[2], json=json.loads(words[-1]), trust_env=False, timeout=60).json()
    finally:
        server.terminate()
        server.wait(timeout=30)
    assert named.startswith("letters 1 answers on http://127.0.0.1:")
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == spelt_out(chat, ASK)[0]
    assert json.loads(words[-1]) == {"messages": ASK, "temperature": 0.7}
    assert 0 < asked["usage"]["completion_tokens"] <= LIMIT
    assert server.returncode == 0
