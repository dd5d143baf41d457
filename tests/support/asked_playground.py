"""The playground on a registry of tiny models, asked over HTTP."""

import json
import re

import pytest
from fastapi.testclient import TestClient
from registered import load
from registered_chat import SYSTEM, chat_recipe

from rlhf_lib.ppo.rollout import sample_responses
from tasks.annotation.database import Database, sqlite_url
from tasks.pages.playground_server import application

CHAT = ["letters/2", "letters/1", "letters/1/reference"]


@pytest.fixture(scope="module", name="database")
def database_of_votes(tmp_path_factory):
    made = Database(sqlite_url(tmp_path_factory.mktemp("votes") / "annotation.db"))
    yield made
    made.close()


@pytest.fixture(scope="module", name="app")
def the_application(registry, database):
    return application(database)


@pytest.fixture(scope="module", name="client")
def a_browser(app):
    with TestClient(app, base_url="http://127.0.0.1") as client:
        page = client.get("/playground").text
        client.headers["X-CSRF-Token"] = re.search(r'name="csrf" content="([^"]+)"', page)[1]
        yield client


def events(client, models, prompt="hello", **more):
    response = client.post("/playground/answers", json={"models": models, "prompt": prompt} | more)
    assert response.status_code == 200, response.text
    *told, end = [json.loads(line.removeprefix("data: ")) for line in response.text.strip().split("\n\n")]
    assert end == {"end": True}
    return told


def answers(told, count):
    """(the streamed text, the last event) of each model."""
    texts, last = [""] * count, [None] * count
    for event in told:
        if "at" not in event:
            continue
        at = event["at"]
        assert last[at] is None  # nothing comes after the last
        if "add" in event or "text" in event:
            texts[at] = event.get("text", texts[at] + event.get("add", ""))
        else:
            last[at] = event
    return list(zip(texts, last, strict=True))


def sampled(folder, messages, turn=0, seed=0, **settings):
    model, tokenizer = load(folder)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    greedy = settings.pop("greedy", False)
    generation = chat_recipe().generation.model_copy(update=settings)
    return sample_responses(model, tokenizer, [ids], generation, seed=seed, step=turn, greedy=greedy)


def asked(prompt="hello", system=SYSTEM):
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]
