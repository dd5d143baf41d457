"""The champion's words: in process and over HTTP, as decoding spelt out has them."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pytest
import torch
from operated import free_port
from registered import LONG, PROMPTS, greedy_texts, load, make_recipe, own_store, policy_folders, register  # noqa: F401
from tiny_models import one_thread  # noqa: F401

from flows.servers.services import await_page
from rlhf_lib.ppo.rollout import sample_responses
from tasks.registry import policies
from tasks.registry.policy_server import checked, framed
from tests.rlhf_lib.evaluation.test_promotion import figures


def test_served_words_are_greedy_decodings_words(store, folders):
    """In process: stop text, EOS, limits and the model's own generation config, against decoding spelt out."""
    folder = folders["plain"]
    expected = greedy_texts(folder, PROMPTS)
    stop = expected[0][5:8]
    recipe = make_recipe(generation={"max_new_tokens": 16, "stop": stop})
    register(store, folders, folder, recipe)
    served = mlflow.pyfunc.load_model("models:/letters@champion")
    assert served.predict(PROMPTS) == [text.split(stop)[0] for text in expected]
    model, tokenizer = load(folder)
    ids = [tokenizer(p).input_ids for p in PROMPTS]
    assert (
        served.predict(PROMPTS) == sample_responses(model, tokenizer, ids, recipe.generation, seed=0, greedy=True).texts
    )
    assert served.predict([PROMPTS[1]], params={"max_new_tokens": 4}) == [
        greedy_texts(folder, [PROMPTS[1]], 4)[0].split(stop)[0]
    ]
    with pytest.raises(Exception, match="at most 127"):
        served.predict([LONG])


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_served_responses_end_where_local_ones_do(store, folders, ignore_eos):
    recipe = make_recipe(generation={"max_new_tokens": 16, "ignore_eos": ignore_eos})
    register(store, folders, folders["brief"], recipe)
    answers = mlflow.pyfunc.load_model("models:/letters@champion").predict(PROMPTS)
    model, tokenizer = load(folders["brief"])
    ids = [tokenizer(p).input_ids for p in PROMPTS]
    local = sample_responses(model, tokenizer, ids, recipe.generation, seed=0, greedy=True)
    assert answers == local.texts
    assert any(local.ended) is not ignore_eos
    if not ignore_eos:
        assert answers == greedy_texts(folders["brief"], PROMPTS)


def sampled_text(folder, prompt, seed, temperature, top_k=None, steps=16):
    """Sampling spelt out, from torch's stream."""
    model, tokenizer = load(folder)
    ids = tokenizer(prompt).input_ids
    start = len(ids)
    torch.manual_seed(seed)
    while len(ids) < start + steps and ids[-1] != tokenizer.eos_token_id:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1] / temperature
        if top_k:
            logits[logits < logits.topk(top_k).values[-1]] = -float("inf")
        ids.append(int(torch.multinomial(logits.softmax(-1), 1)))
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_requests_set_the_sampling(store, folders):
    folder = folders["plain"]
    register(store, folders, folder)
    served = mlflow.pyfunc.load_model("models:/letters@champion")
    greedy = greedy_texts(folder, PROMPTS[:2])

    def answers(**params):
        return served.predict(PROMPTS[:2], params=params)

    for params in ({"temperature": 1.5, "seed": 3}, {"temperature": 0.8, "seed": 4, "top_k": 5}):
        spelt = {"temperature": params["temperature"], "top_k": params.get("top_k"), "seed": params["seed"]}
        before = torch.random.get_rng_state()
        assert answers(**params) == [sampled_text(folder, prompt, **spelt) for prompt in PROMPTS[:2]]
        torch.random.set_rng_state(before)
    assert answers(temperature=5.0, top_k=1) == answers(temperature=5.0, top_p=1e-6) == answers(temperature=0) == greedy
    assert len({tuple(answers(temperature=1.5)) for _ in range(3)}) == 3  # without a seed, others each time
    stop = greedy[0][4:6]
    assert answers(stop=stop)[0] == greedy[0].split(stop)[0]
    assert answers(seed=None, stop=None) == greedy


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"temperature": -1}, "temperature is -1, but must be 0 (greedy decoding) or a larger number"),
        ({"temperature": float("nan")}, "temperature is nan, but must be 0"),
        ({"temperature": "hot"}, "temperature is 'hot', but must be 0"),
        ({"temperature": True}, "temperature is True, but must be 0"),
        ({"temperature": 1, "top_p": 0}, "top_p is 0, but must be a number above 0 and at most 1 (1: off)"),
        ({"temperature": 1, "top_k": 2.5}, "top_k is 2.5, but must be a whole number of at least 0 (0: off)"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, but must be a whole number of at least 1"),
        ({"seed": -1}, "seed is -1, but must be a whole number of at least 0"),
        ({"stop": ""}, "stop is '', but must be a text, not empty"),
        ({"top_p": 0.9}, "top_p and top_k need a temperature: without one, decoding is greedy and they change nothing"),
        (
            {"warmth": 1},
            "there is no parameter 'warmth': there are max_new_tokens, temperature, top_p, top_k, seed, stop",
        ),
    ],
)
def test_bad_parameters_are_named(params, error):
    with pytest.raises(ValueError) as refused:
        checked(params)
    assert str(refused.value).startswith(error)


def test_mlflow_models_serve_answers_word_for_word(store, folders, tmp_path):
    recipe = make_recipe(data={"prompts": {"dataset": "local", "query": {"kind": "dialogue"}}})
    register(store, folders, folders["lettered"], recipe)
    register(store, folders, folders["plain"], recipe, figures(kl=1.0))  # a challenger must not be what is served
    port = free_port()
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",  # nothing of ours on the server
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/letters@champion", "-h", "127.0.0.1"]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        [*command, "-p", str(port), "--env-manager", "local"],
        cwd=tmp_path,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        await_page(
            f"{url}/ping",
            "mlflow models serve",
            lambda: None if server.poll() is None else "it",
            lambda _: f"see {log.name}",
        )
        prompts, headers = [PROMPTS[0], PROMPTS[1]], {"Content-Type": "application/json"}

        def ask(**request):
            body = json.dumps(request).encode()
            with urllib.request.urlopen(
                urllib.request.Request(f"{url}/invocations", body, headers), timeout=60
            ) as answer:
                return json.load(answer)["predictions"]

        answers = ask(inputs=prompts)
        plain = ask(inputs="where is my parcel?")
        sampled = ask(
            dataframe_split={"columns": ["question"], "data": [["hello"]]}, params={"temperature": 1, "seed": 3}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(instances=["hello"], params={"top_p": 1.5, "temperature": 1})
        said = json.load(refused.value)
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)
        log.close()
    assert answers == greedy_texts(folders["lettered"], prompts)
    assert answers[0] != answers[1]
    assert plain == answers[:1]
    assert sampled == [sampled_text(folders["lettered"], PROMPTS[2], 3, 1.0)]
    assert refused.value.code == 400
    assert "top_p is 1.5, but must be a number above 0 and at most 1" in said["message"]
    assert "stack_trace" not in said


DIALOGUE = "\n\nHuman: {query}\n\nAssistant:"
HI = "\n\nHuman: hi\n\nAssistant:"
LONGER = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: bye"


@pytest.mark.parametrize(
    ("asked", "template", "turn", "query", "prompt"),
    [
        ("This film", None, None, "This film", "This film"),
        ("hi", "Q: {query}\nA:", None, "hi", "Q: hi\nA:"),
        ("Q: hi\nA:", "Q: {query}\nA:", None, "hi", "Q: hi\nA:"),
        ("Q: hi", "Q: {query}\nA:", None, "Q: hi", "Q: Q: hi\nA:"),
        ("{x} {query}", "{'a'} {query}", None, "{x} {query}", "{'a'} {x} {query}"),
        (" hi\n", None, DIALOGUE, HI, HI),
        (HI, None, DIALOGUE, HI, HI),
        (HI.strip(), None, DIALOGUE, HI, HI),
        (LONGER, None, DIALOGUE, f"{LONGER}\n\nAssistant:", f"{LONGER}\n\nAssistant:"),
        ("hi", "[{query}]", DIALOGUE, HI, f"[{HI}]"),
        (f"[{HI}]", "[{query}]", DIALOGUE, HI, f"[{HI}]"),
    ],
)
def test_a_question_is_put_in_the_form_of_the_prompts(asked, template, turn, query, prompt):
    assert framed(asked, template, turn) == (query, prompt)


def test_every_prompt_of_a_recipe_is_a_question_in_its_form():
    """What the policy was trained on is asked as it is, and a bare question becomes just that."""
    from rlhf_lib.data.prompts import load_prompts
    from rlhf_lib.recipe import load_recipe

    recipe = load_recipe("embedded", ["data.prompts.limit=20", "data.prompts.template='<{query}>'"])
    train = load_prompts(recipe).train
    for query, prompt in zip(train["query"], train["prompt"], strict=True):
        assert framed(prompt, **policies.form(recipe)) == framed(query, **policies.form(recipe)) == (query, prompt)
