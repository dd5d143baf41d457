"""Bad input: one message that names the culprit and the fix, before anything costly, and no traceback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DistilBertConfig, DistilBertForSequenceClassification, GPT2Config, PreTrainedTokenizerFast

from flows import cli

DIALOGUE = "\n\nHuman: Is number {} odd?\n\nAssistant: {}"
BAD_REWARDS = """\
def raises(queries, responses):
    return [{"odd": 1.0}[response] for response in responses]
def first_word(queries, responses):
    return [float(len(response.split()[0])) for response in responses]
def nothing(queries, responses):
    pass
def text(queries, responses):
    return ["good" for _ in responses]
def nan(queries, responses):
    return [float("nan") for _ in responses]
def one(queries, responses):
    return [1.0]
import os
def needs_key(queries, responses):
    return [float(os.environ["NO_SUCH_KEY"])]
"""
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Data sets, models and recipes with something wrong, each in a place named after it."""
    root = tmp_path_factory.mktemp("bad")
    good = [{"chosen": DIALOGUE.format(i, "yes"), "rejected": DIALOGUE.format(i, "no")} for i in range(120)]
    turns = [{"role": "user", "content": "Is 1 odd?"}, {"role": "assistant", "content": "yes"}]
    sets = {
        "good": good,
        "plain": [*good[:3], {"chosen": "No dialogue at all", "rejected": good[3]["rejected"]}],
        "headless": [{"chosen": row["chosen"]} for row in good],
        "messages": [{"chosen": turns, "rejected": "no"}] * 3,
        "unpaired": [{"prompt": "Is 1 odd?", "completion": "yes", "label": True}] * 3,
        "listed": [{"prompt": ["Is 1 odd?"], "chosen": "yes", "rejected": "no"}] * 3,
    }
    for name, rows in sets.items():
        (root / name).mkdir()
        for split in ("train", "test"):
            some = rows if name != "good" else rows[::2] if split == "train" else rows[1::2]
            (root / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "yes": 1, "<e>": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    endless = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    endless.save_pretrained(root / "endless")
    GPT2Config(vocab_size=3, n_positions=64, n_embd=8, n_layer=1, n_head=1).save_pretrained(root / "endless")
    size = {"vocab_size": 3, "dim": 8, "n_layers": 1, "n_heads": 1, "hidden_dim": 8, "max_position_embeddings": 64}
    config = DistilBertConfig(**size, id2label={0: "SAD", 1: "GLAD"}, label2id={"SAD": 0, "GLAD": 1})
    DistilBertForSequenceClassification(config).save_pretrained(root / "classifier")
    endless.save_pretrained(root / "classifier")

    (root / "key.yaml").write_text(
        "name: x\ndata: {prompts: {dataset: x}}\npolicy: {model: x}\nppo: {learning_rat: 1}\n"
    )
    (root / "type.yaml").write_text("name: x\ndata: {prompts: {dataset: x}}\npolicy: {model: x}\nppo: {steps: many}\n")
    (root / "list.yaml").write_text("- name: x\n")
    (root / "broken.yaml").write_text("name: [x\n")
    (root / "file").write_text("")
    (root / "broken.jsonl").write_text('{"chosen": "yes"}\n{"chosen: yes}\n')
    (root / "bad_rewards.py").write_text(BAD_REWARDS)
    return root


@pytest.fixture
def environment(tmp_path, monkeypatch, files):
    """A run folder of this test's own; the command line may change these, and they come back. No process is left."""
    before = psutil.Process().children(recursive=True)
    monkeypatch.syspath_prepend(str(files))
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_HOME"):
        monkeypatch.setenv(name, os.environ[name])
    monkeypatch.setenv("RLHF_RUN_DIR", str(tmp_path / "runs"))
    yield tmp_path / "runs"
    assert psutil.Process().children(recursive=True) == before


def check(code: int, printed: str, mentions: list[str], files: Path, run_dir: Path) -> None:
    message = [line for line in printed.splitlines() if line.startswith("rlhf: error: ")]
    assert len(message) == 1, printed
    for words in mentions:
        assert words.format(files=files) in message[0]
    assert code == 2
    assert "Traceback" not in printed
    assert not list(run_dir.rglob("*.safetensors"))


# ---------------------------------------------------------------- before Prefect and MLflow are even started


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["embeded"], ["unknown recipe 'embeded'", "did you mean embedded?", "must end in .yaml"]),
        (["{files}/none.yaml"], ["none.yaml", "doesn't exist"]),
        (["{files}/key.yaml"], ["key.yaml", "unknown key 'ppo.learning_rat'", "did you mean 'learning_rate'"]),
        (["{files}/type.yaml"], ["type.yaml", "ppo.steps", "valid integer", "'many'"]),
        (["{files}/list.yaml"], ["list.yaml", "must be a mapping of sections"]),
        (["{files}/broken.yaml"], ["broken.yaml", "not valid YAML"]),
        (["embedded", "--set", "ppo.step=3"], ["unknown key 'ppo.step'", "did you mean 'steps'"]),
        (["embedded", "--set", "ppo.steps=0"], ["ppo.steps", "greater than or equal to 1", "given: 0"]),
        (["embedded", "--set", "generation.temperature=warm"], ["generation.temperature", "'warm'"]),
        (["embedded", "--set", "ppo.steps"], ["'ppo.steps' must have the form section.key=value"]),
        (["embedded", "--set", "seed.x=1"], ["seed: Input should be a valid integer"]),
        (
            ["embedded", "--until", "reward-modle"],
            ["no stage 'reward-modle'", "did you mean reward_model?", "the stages are data, base_model"],
        ),
        (
            ["embedded", "--set", "reward.checks.pairs=20"],
            ["reward.checks: pairs (20) is below min_pairs (50), so every reward would be refused: raise pairs, or"],
        ),
        (["embedded", "--run-dir", "{files}/file"], ["run folder {files}/file can't be written", "set --run-dir"]),
        (["embedded", "--summary", "{files}/no/s.json"], ["{files}/no/s.json", "folder doesn't exist"]),
    ],
)
def test_refused_at_once(arguments, mentions, files, environment, capsys):
    code = cli.main(["run", *(word.format(files=files) for word in arguments)])
    check(code, capsys.readouterr().err, mentions, files, environment)


@pytest.mark.parametrize(
    ("setting", "server"), [("MLFLOW_TRACKING_URI", "MLflow server"), ("PREFECT_API_URL", "Prefect server")]
)
def test_a_server_that_does_not_answer(setting, server, files, environment, monkeypatch, capsys):
    monkeypatch.setenv(setting, f"{NOWHERE}/api")
    code = cli.main(["run", "embedded"])
    mentions = [f"{server} at {NOWHERE}/api doesn't answer", f"unset {setting}"]
    check(code, capsys.readouterr().err, mentions, files, environment)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_folder_without_permission(files, environment, capsys):
    environment.mkdir()
    environment.chmod(0o500)
    code = cli.main(["run", "embedded"])
    check(code, capsys.readouterr().err, [f"run folder {environment}", "Permission denied"], files, environment)


# ---------------------------------------------------------------- found by the run, before its first costly step

SET, LOCAL = "data.prompts.dataset", "{files}/good"
GIVEN = ["policy.train=null", "policy.model={files}/endless"]
FUNCTION = [f"{SET}={LOCAL}", "reward.kind=function", "reward.terms=null"]
CLASSIFIER = ["reward.kind=classifier", "reward.terms=null", "reward.model={files}/classifier"]
FOUND = {
    "no such folder": ([f"{SET}=/no/such/set"], ["/no/such/set doesn't exist", SET]),
    "data set on the hub, offline": (
        [f"{SET}=Anthropic/hh-rlhf"],
        ["data set Anthropic/hh-rlhf", "HF_HUB_OFFLINE is set", f"set {SET} to the local folder"],
    ),
    "no such model folder": (
        [f"{SET}={LOCAL}", "policy.train=null", "policy.model=/no/such/model"],
        ["model /no/such/model", "no such folder", "local folder that holds config.json"],
    ),
    "model on the hub, offline": (
        [f"{SET}={LOCAL}", "policy.train=null", "policy.model=nobody/gpt2-imdb"],
        ["model nobody/gpt2-imdb", "HF_HUB_OFFLINE is set", "point to a local folder"],
    ),
    "no such metric": (
        [f"{SET}={LOCAL}", "evaluation.metrics=[nowhere:metric]"],
        ["evaluation.metrics nowhere:metric", "module nowhere can't be imported"],
    ),
    "model not in the registry": (
        [f"{SET}={LOCAL}", "policy.train=null", "policy.model=models:/nothing@champion"],
        ["models:/nothing@champion", "models:/NAME@ALIAS"],
    ),
    "missing prompt column": (
        [f"{SET}={LOCAL}", "data.prompts.column=txt"],
        ["{files}/good", "column 'txt' not found in", "Set data.prompts.column"],
    ),
    "missing pair column": (
        [f"{SET}={LOCAL}", "data.preferences.train.dataset={files}/headless"],
        ["{files}/headless", "column 'rejected' not found in", "data.preferences.rejected"],
    ),
    "missing perplexity column": (
        [f"{SET}={LOCAL}", "evaluation.perplexity.column=txt"],
        ["column 'txt' not found", "evaluation.perplexity.column"],
    ),
    "missing perplexity split": (
        [f"{SET}={LOCAL}", "evaluation.perplexity.split=tset"],
        ["{files}/good", "Unknown split", "Set evaluation.perplexity.split"],
    ),
    "chat messages beside a text": (
        [f"{SET}={LOCAL}", "data.preferences.train.dataset={files}/messages"],
        [
            "error: data set {files}/messages (split train): column 'chosen' holds chat messages, but column "
            "'rejected' doesn't: make both texts, or both lists of messages {{role, content}}"
        ],
    ),
    "labelled answers as pairs": (
        [f"{SET}={LOCAL}", "data.preferences.train.dataset={files}/unpaired"],
        [
            "error: data set {files}/unpaired (split train): 'completion' and 'label' are answers judged one by one, "
            "no pairs. Train a classifier on them: data.labelled instead of data.preferences, and reward.kind "
            "classifier with reward.label desirable"
        ],
    ),
    "prompts of pairs that are lists": (
        [f"{SET}={LOCAL}", "data.preferences.train.dataset={files}/listed"],
        ["(split train): column 'prompt' holds lists, not text. Join each list into one text"],
    ),
    "a perplexity column that isn't text": (
        [
            f"{SET}={LOCAL}",
            "evaluation.perplexity.dataset={files}/listed",
            "evaluation.perplexity.split=train",
            "evaluation.perplexity.column=prompt",
        ],
        ["column 'prompt' holds lists, not text", "or set evaluation.perplexity.column to a column of texts"],
    ),
    "three held-out pairs": (
        [f"{SET}={LOCAL}", "data.preferences.test.split=test[:3]"],
        [
            "error: the reward can't be checked on 3 held-out pairs: reward.checks.min_pairs is 50. Hold out more "
            "pairs (data.preferences.test), or lower min_pairs (null switches it off)"
        ],
    ),
    "as many unfrozen layers as there are": (
        [f"{SET}={LOCAL}", "policy.unfrozen_layers=2"],
        [
            "error: policy.unfrozen_layers is 2, but GPT2LMHeadModel has 2 blocks: set it to 1 (or the same "
            "negative); null trains all"
        ],
    ),
    "unfrozen layers of a model of one block": (
        [f"{SET}={LOCAL}", "policy.unfrozen_layers=1", "policy.train.from_scratch.layers=1"],
        [
            "error: policy.unfrozen_layers is 1, but GPT2LMHeadModel has 1 block, which can't be frozen in "
            "part: leave it null, which trains all of it"
        ],
    ),
    "a row that is not a dialogue": (
        [f"{SET}={{files}}/plain"],
        ["{files}/plain", "row 3, column 'chosen' is not a dialogue", "'No dialogue at all'"],
    ),
    "nothing left by the filters": (
        [f"{SET}={LOCAL}", "data.prompts.max_query_chars=5"],
        ["{files}/good", "max_query_chars", "Raise data.prompts.max_query_chars"],
    ),
    "prompts longer than the positions": (
        [f"{SET}={LOCAL}", "policy.train.from_scratch.positions=50", "policy.train.from_scratch.vocab_size=258"],
        ["none of the 60 prompts leaves room", "50 positions", "Shorten the prompts"],
    ),
    "a tokenizer without EOS": ([f"{SET}={LOCAL}", *GIVEN], ["{files}/endless", "no EOS token", "save_pretrained"]),
    "a label that the classifier doesn't have": (
        [f"{SET}={LOCAL}", *CLASSIFIER, "reward.label=POSITIVE"],
        ["no label 'POSITIVE'", "reward.label to one of SAD, GLAD"],
    ),
    "a classifier without a label given": (
        [f"{SET}={LOCAL}", *CLASSIFIER],
        ["2 outputs", "reward.label to one of SAD, GLAD"],
    ),
    "a reward function that isn't there": (
        [*FUNCTION, "reward.function=nowhere:score"],
        ["nowhere:score", "can't be imported"],
    ),
    **{
        f"a reward that {does}": ([*FUNCTION, f"reward.function=bad_rewards:{name}"], said)
        for does, name, said in (
            ("raises", "raises", ["error: reward.function bad_rewards:raises raised KeyError: ' yes'"]),
            ("raises for an empty response", "first_word", ["IndexError: list index", "for empty responses, which a"]),
            ("gives None", "nothing", ["bad_rewards:nothing gave None: it must give a list of numbers"]),
            ("gives text", "text", ["bad_rewards:text gave 'good' for the query "]),
            ("gives NaN", "nan", ["bad_rewards:nan gave nan for the query", "Is number", "' yes'"]),
            ("gives too few scores", "one", ["bad_rewards:one gave 1 scores for 8 responses"]),
        )
    },
    "more unfrozen layers than there are": (
        [f"{SET}={LOCAL}", "policy.unfrozen_layers=7"],
        ["policy.unfrozen_layers is 7, but GPT2LMHeadModel has 2 blocks"],
    ),
    "a device that isn't there": ([f"{SET}={LOCAL}", "compute.device=cuda:77"], ["compute.device cuda:77", "set auto"]),
}


@pytest.mark.parametrize("case", FOUND)
def test_found_before_anything_is_trained(case, files, environment, prefect_server, mlflow_store, capsys):
    settings, mentions = FOUND[case]
    options = [word for setting in settings for word in ("--set", setting.format(files=files))]
    with mlflow_store(environment):
        code = cli.main(["run", "embedded", *options])
    check(code, capsys.readouterr().err, mentions, files, environment)


def test_a_reward_that_raises_shows_the_users_own_frames(files, environment, prefect_server, mlflow_store, capsys):
    options = [*FUNCTION[1:], f"{SET}={files}/good", "reward.function=bad_rewards:raises"]
    with mlflow_store(environment):
        code = cli.main(["run", "embedded", *(word for setting in options for word in ("--set", setting))])
    printed = capsys.readouterr().err
    check(code, printed, ["reward.function bad_rewards:raises raised KeyError"], files, environment)
    assert f'File "{files}/bad_rewards.py", line 2, in raises' in printed
    assert "rlhf_lib" not in printed


@pytest.mark.parametrize("setting", [f"{SET}=Anthropic/hh-rlhf", "policy={train: null, model: nobody/gpt2-imdb}"])
def test_a_hub_that_does_not_answer(setting, files, environment, prefect_server, mlflow_store, capsys, monkeypatch):
    """Not offline by the environment: one short request finds it out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    with mlflow_store(environment):
        code = cli.main(["run", "embedded", "--set", setting])
    mentions = [f"the hub is out of reach ({NOWHERE} doesn't answer", "local folder"]
    check(code, capsys.readouterr().err, mentions, files, environment)


def test_the_terminal_has_one_line_and_prefect_and_the_log_file_the_rest(
    files, environment, prefect_server, mlflow_store
):
    """As a user sees it: the whole output of the process."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter
    from prefect.settings import PREFECT_API_URL

    with mlflow_store(environment):
        variables = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
        command = [sys.executable, "-m", "flows.cli", "run", "embedded", "--set", f"{SET}={files}/broken.jsonl"]
        result = subprocess.run(command, env=variables, capture_output=True, text=True)
    lines = [line for line in (result.stdout + result.stderr).splitlines() if not line.startswith("rlhf: starting")]
    check(result.returncode, "\n".join(lines), ["{files}/broken.jsonl, line 2 is not valid JSON"], files, environment)
    assert len(lines) == 1
    (file,) = (environment / "logs").iterdir()
    log = file.read_text()
    assert re.search(r"Beginning flow run '(embedded [^']*)'", log)
    assert "Traceback (most recent call last)" in log
    with get_client(sync_client=True) as client:
        logs = client.read_logs(LogFilter(level={"ge_": 40}), limit=200)
    kept = [log.message for log in logs if "line 2 is not valid JSON" in log.message]
    assert len(kept) == 1
    assert "Traceback" not in kept[0]
