"""The champion's words: in process and over HTTP, as greedy decoding spelt out has them."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import mlflow
import pytest
from operated import free_port
from registered import LONG, PROMPTS, greedy_texts, load, make_recipe, own_store, policy_folders, register  # noqa: F401
from tiny_models import one_thread  # noqa: F401

from flows.servers.services import await_page
from rlhf_lib.ppo.rollout import sample_responses
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


def test_mlflow_models_serve_answers_word_for_word(store, folders, tmp_path):
    register(store, folders, folders["lettered"])
    register(store, folders, folders["plain"], evaluation=figures(kl=1.0))  # a challenger must not be what is served
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
        await_page(f"{url}/ping", "mlflow models serve", lambda: server.poll() is not None, f"see {log.name}")
        prompts = [PROMPTS[0], PROMPTS[1]]
        request = urllib.request.Request(
            f"{url}/invocations", json.dumps({"inputs": prompts}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answers = json.load(response)["predictions"]
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)
        log.close()
    assert answers == greedy_texts(folders["lettered"], prompts)
    assert answers[0] != answers[1]
