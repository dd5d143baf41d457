"""Registration against a real MLflow store: gates, the duel with the champion, the way back, and answers over HTTP."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import count
from pathlib import Path

import mlflow
import pytest
import torch
from datasets import Dataset
from test_promotion import figures
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_lib.errors import EnvironmentFault, ModelError, RecipeError
from rlhf_lib.ppo.rollout import sample_responses
from rlhf_lib.recipe import Recipe
from tasks import registration, registry
from tasks.tracking import PipelineRun

EOS = "<|endoftext|>"
PROMPTS = [
    f"\n\nHuman: {line}\n\nAssistant:"
    for line in (
        "where is my parcel?",
        "can I return the  shoes ",
        "hello",
        "the lamp is broken",
        "I want a refund",
        "hi!",
    )
]
LONG = "\n\nHuman: " + "please help me now. " * 30 + "\n\nAssistant:"


def letters(queries, responses):
    """The reward of the tests: share of the response's characters that are ASCII letters."""
    return [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in responses]


def train_tokenizer(vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f"{p} I am glad to help.\n" for p in PROMPTS] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, bos_token=EOS)


def make_policy(folder, *, seed, vocab_size=300, favour=(), positions=128):
    """A random GPT-2 and its tokenizer in a folder; texts in `favour` name tokens that it likes to draw."""
    tokenizer = train_tokenizer(vocab_size)
    torch.manual_seed(seed)
    eos = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.4,
        bos_token_id=eos,
        eos_token_id=eos,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config).eval()
    # a first feature that is always 10 after the last norm serves as a bias on the logits
    with torch.no_grad():
        model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0.0, 10.0
        model.lm_head.weight[:, 0] = 0.0
        for text in favour:
            model.lm_head.weight[tokenizer(text).input_ids, 0] = 0.6
    # what a model's own generation config says must not reach the served words
    model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=1.7, min_new_tokens=3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_recipe(**sections):
    return Recipe.model_validate(
        {
            "name": "letters",
            "description": "Letters for everyone.",
            "data": {"prompts": {"dataset": "local"}},
            "policy": {"model": "tiny"},
            "reward": {"kind": "function", "function": "test_registration:letters"},
            "generation": {"max_new_tokens": 16},
            "compute": {"device": "cpu", "precision": "fp32"},
        }
        | sections
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(tmp_path, monkeypatch, mlflow_store):
    """An MLflow SQLite store of this test's own, with a parent run; yields the PipelineRun."""
    monkeypatch.chdir(tmp_path)
    with mlflow_store(tmp_path), mlflow.start_run() as parent:
        yield PipelineRun(run_dir=str(tmp_path / "runs"), parent_run_id=parent.info.run_id)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("policies")
    Dataset.from_dict({"query": [*PROMPTS, LONG], "prompt": [*PROMPTS, LONG]}).save_to_disk(root / "prompts")
    return {
        "plain": make_policy(root / "plain", seed=1),
        "lettered": make_policy(root / "lettered", seed=2, vocab_size=290, favour=["abcdefghijklm", "nopqrstuvwxyz"]),
        "brief": make_policy(root / "brief", seed=3, favour=[EOS]),
        "prompts": str(root / "prompts"),
    }


ids = map(str, count())  # of runs of PPO: each registration is another run's


def register(run, folders, folder, recipe=None, evaluation=None, ppo=None, **more):
    return registration.register_policy.fn(
        recipe or make_recipe(),
        run,
        {"model": "tiny", "fingerprint": "base123", "prompts": {"train": None, "test": folders["prompts"]}},
        {"model": None, "fingerprint": "reward456", "normalization": None},
        {
            "policy": folder,
            "reference": folders["plain"],
            "steps": 7,
            "seconds": 1.5,
            "kl": 4.0,
            "mlflow_run_id": ppo or next(ids),
        },
        evaluation or figures(),
        **more,
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_registration_that_was_killed_is_completed_by_the_next(store, folders, monkeypatch, when):
    """Whether it got as far as the alias or not: one version, champion, and nothing twice."""
    crown = registration.champions.crown

    def killed(*words):
        if when == "after":
            crown(*words)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registration.champions, "crown", killed)
        with pytest.raises(KeyboardInterrupt):
            register(store, folders, folders["plain"], ppo="1")
    record = register(store, folders, folders["plain"], ppo="1")
    assert (record["version"], record["promoted"]) == ("1", True)
    assert aliases("letters") == {"challenger": "1", "champion": "1"}
    assert len(mlflow.MlflowClient().search_model_versions("name='letters'")) == 1


def aliases(name):
    return {alias: str(v) for alias, v in mlflow.MlflowClient().get_registered_model(name).aliases.items()}


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def greedy_texts(folder, prompts, steps=16):
    """Greedy decoding spelt out: the whole text anew for each token, the largest logit, until EOS or the limit."""
    model, tokenizer = load(folder)
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt).input_ids
        start = len(ids)
        while len(ids) < start + steps and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        texts.append(tokenizer.decode(ids[start:], skip_special_tokens=True))
    return texts


# ---------------------------------------------------------------- versions


def test_first_version_becomes_champion_with_card_tags_and_pins(store, folders):
    record = register(
        store,
        folders,
        folders["lettered"],
        checks={"accuracy": 0.93},
        data={"fingerprints": {"prompts": {"train": "feed01"}, "preferences": None}},
    )
    assert (record["name"], record["version"], record["promoted"], record["duel"]) == ("letters", "1", True, None)

    client = mlflow.MlflowClient()
    assert aliases("letters") == {"challenger": "1", "champion": "1"}
    version = client.get_model_version("letters", "1")
    assert version.tags["promoted"] == "true"
    assert version.tags["reason"] == record["reason"]
    assert version.tags["reward/ci95_low"] == "0.3"
    assert version.tags["reward_model/accuracy"] == "0.93"
    for fact in (
        "feed01",
        "reward456",
        "base123",
        store.parent_run_id,
        "0.93",
        "7 steps",
        "Promoted to champion",
        "| perplexity (by token) | 20 | 30 |",
    ):
        assert fact in version.description
    child = client.get_run(record["mlflow_run_id"])
    assert version.run_id == child.info.run_id
    assert child.data.tags["mlflow.parentRunId"] == store.parent_run_id
    assert child.data.metrics["reward/delta"] == 0.5
    assert child.data.metrics["promoted"] == 1.0

    root = Path(mlflow.artifacts.download_artifacts("models:/letters@champion"))
    files = {str(f.relative_to(root)) for f in root.rglob("*") if f.is_file()}
    assert (root / "model_card.md").read_text() == version.description
    assert not [f for f in files if f.endswith((".pkl", ".bin", ".pt"))]
    pins = (root / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in pins
    assert all("==" in pin and "+" not in pin for pin in pins)
    signature = mlflow.models.get_model_info("models:/letters@champion").signature
    for schema in (signature.inputs, signature.outputs):
        assert [str(t) for t in schema.input_types()] == ["DataType.string"]
    assert signature.params.to_dict()[0]["default"] == 16


def test_champion_resolves_to_a_folder_with_the_same_logits(store, folders):
    register(store, folders, folders["lettered"])
    folder = registry.resolve_model("models:/letters@champion")
    back, ours = (AutoModelForCausalLM.from_pretrained(f).eval() for f in (folder, folders["lettered"]))
    tokens = torch.tensor([AutoTokenizer.from_pretrained(folder)(PROMPTS[0]).input_ids])
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, ours(tokens).logits)
    assert registry.resolve_model("gpt2") == "gpt2"
    with pytest.raises(ModelError, match=r"models:/letters@nobody .*models:/NAME@ALIAS"):
        registry.resolve_model("models:/letters@nobody")


def test_better_candidate_with_another_tokenizer_takes_the_place(store, folders):
    register(store, folders, folders["plain"])
    record = register(store, folders, folders["lettered"])
    assert record["promoted"]
    assert record["duel"]["version"] == "1"
    assert record["duel"]["prompts"] == len(PROMPTS)  # the long one fits neither
    assert record["duel"]["ci95"][0] > 0
    assert aliases("letters") == {"challenger": "2", "champion": "2"}

    # what the duel says is what sampling and scoring by hand gives
    means = []
    for name in ("lettered", "plain"):
        model, tokenizer = load(folders[name])
        ids = [tokenizer(p).input_ids for p in PROMPTS]
        texts = sample_responses(model, tokenizer, ids, make_recipe().generation, seed=0).texts
        means.append(sum(letters(PROMPTS, texts)) / len(texts))
    assert record["duel"]["delta"] == pytest.approx(means[0] - means[1], abs=1e-6)


def test_the_same_policy_again_stays_challenger_and_says_why(store, folders):
    register(store, folders, folders["lettered"])
    record = register(store, folders, folders["lettered"])
    assert not record["promoted"]
    assert record["duel"]["delta"] == 0.0
    assert record["reason"] == "beats_champion: 0 is not above 0"
    client = mlflow.MlflowClient()
    assert aliases("letters") == {"challenger": "2", "champion": "1"}
    version = client.get_model_version("letters", "2")
    assert version.tags["promoted"] == "false"
    assert "Not promoted: beats_champion" in version.description


def test_failed_gate_gives_a_challenger_not_an_error(store, folders):
    evaluation = figures(perplexity={"reference": 10.0, "policy": 99.0})
    record = register(store, folders, folders["lettered"], evaluation=evaluation)
    assert not record["promoted"]
    assert record["reason"] == "max_perplexity_ratio: 9.9 is not at most 2"
    assert aliases("letters") == {"challenger": "1"}


def test_promote_false_and_a_name_of_its_own(store, folders):
    recipe = make_recipe(registration={"name": "other", "promote": False})
    record = register(store, folders, folders["lettered"], recipe, figures(perplexity=None))
    assert (record["name"], record["promoted"]) == ("other", False)
    assert "registration.promote is false" in record["reason"]
    assert "perplexity/policy" not in record["metrics"]
    assert aliases("other") == {"challenger": "1"}


def test_champion_whose_files_are_gone_keeps_its_place(store, folders):
    register(store, folders, folders["plain"])
    shutil.rmtree(registry.resolve_model("models:/letters@champion"))
    record = register(store, folders, folders["lettered"])
    assert (record["version"], record["promoted"]) == ("2", False)
    assert "beats_champion: no comparison" in record["reason"]
    assert aliases("letters") == {"challenger": "2", "champion": "1"}


def test_model_that_comes_back_changed_gets_no_version(store, folders, monkeypatch):
    log_policy = registry.log_policy

    def log_and_damage(*args, **kwargs):
        logged = log_policy(*args, **kwargs)
        folder = registry.resolve_model(logged.model_uri)
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model.transformer.h[1].mlp.c_fc.bias[3] += 1e-3
        model.save_pretrained(folder)
        return logged

    monkeypatch.setattr(registry, "log_policy", log_and_damage)
    with pytest.raises(EnvironmentFault, match="other logits"):
        register(store, folders, folders["plain"])
    assert mlflow.MlflowClient().search_registered_models() == []


def test_pickled_weights_are_refused(store, folders, tmp_path):
    folder = shutil.copytree(folders["plain"], tmp_path / "pickled")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors only"):
        register(store, folders, str(folder))


def test_long_card_is_cut_to_what_the_registry_holds(store, folders):
    recipe = make_recipe(description="much to say " * 600)
    record = register(store, folders, folders["plain"], recipe)
    assert len(mlflow.MlflowClient().get_model_version("letters", record["version"]).description) == 5000


def test_registered_name_that_mlflow_would_refuse_is_refused_at_once(tmp_path):
    from rlhf_lib.recipe import load_recipe

    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(make_recipe().model_dump(mode="json") | {"registration": {"name": "team/letters"}}))
    with pytest.raises(RecipeError, match=r"registration\.name"):
        load_recipe(str(path))


# ---------------------------------------------------------------- served


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",  # nothing of ours on the server
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/letters@champion", "-h", "127.0.0.1"]
    log = (tmp_path / "server.log").open("w+")
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
        wait_for(f"{url}/ping", server, log)
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


def wait_for(url, server, log, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if server.poll() is not None:
                break
            time.sleep(0.2)
    log.seek(0)
    raise AssertionError(f"the server didn't answer:\n{log.read()[-3000:]}")
