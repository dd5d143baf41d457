"""A chat model through every stage and out again: messages in, `rlhf chat`, and HTTP as OpenAI's clients speak it."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import mlflow
import openai
import pytest
import yaml
from chat_models import chat_folder
from datasets import load_from_disk
from operated import free_port
from safetensors.torch import load_file
from tiny_models import one_thread  # noqa: F401
from transformers import AutoTokenizer, GenerationConfig

from flows import cli
from flows.servers.services import await_page
from rlhf_lib.conversation import Conversation, dialogue_messages
from rlhf_lib.data import embedded
from rlhf_lib.rewards.classifier import encode_answers
from tasks.registry import policies
from tests.end_to_end.test_pipeline import started

SYSTEM = "You work for a shop."
END, EOS = "<|im_end|>", "<|endoftext|>"
ASK = [{"role": "user", "content": "My red rug has not arrived. Where is it?"}]
LIMIT = 12
NO_GATES = dict.fromkeys(
    ("min_reward_delta", "min_judge_delta", "max_perplexity_ratio", "max_kl", "min_distinct_2_ratio", "min_prompts")
)


def polite(prompts, completions, item=None, completion_ids=None, **kwargs):
    """A reward as TRL's: messages in, and a column of the prompts' set, where answers are sampled to them."""
    assert all(prompt[0]["role"] == "system" and prompt[-1]["role"] == "user" for prompt in prompts)
    assert completion_ids is None or item is None or all(name.startswith("item ") for name in item)
    return [float(answer[0]["content"].count("e")) for answer in completions]


def pairs(split: str) -> list[dict]:
    """Rows as UltraFeedback's: whole conversations, and their prompt's text beside them."""
    rows = []
    for number, row in enumerate(embedded.load(split).to_list()[:120]):
        chosen, rejected = (dialogue_messages(row[side]) for side in ("chosen", "rejected"))
        rows.append({"prompt": chosen[0]["content"], "chosen": chosen, "rejected": rejected, "item": f"item {number}"})
    return rows


@pytest.fixture(scope="module")
def trained(run_dir, tmp_path_factory):
    """The record of a run with a stand-in that has Qwen 2.5's template, and the folder it started from."""
    root = tmp_path_factory.mktemp("chat")
    for split in ("train", "test"):
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(split)))
    folder = chat_folder(root / "model", "qwen2_5", max_position_embeddings=512)
    recipe = {
        "name": "chatty",
        "data": {
            "prompts": {
                "dataset": str(root / "train.jsonl"),
                "column": "chosen",
                "near_duplicates": None,
                "test": {"dataset": str(root / "test.jsonl"), "split": "test"},
            },
            "preferences": {
                "train": {"dataset": str(root / "train.jsonl")},
                "test": {"dataset": str(root / "test.jsonl"), "split": "test"},
            },
        },
        "policy": {
            "model": str(folder),
            "system": SYSTEM,
            "train": {"max_steps": 4, "batch_size": 8},
        },
        "reward": {
            "kind": "sum",
            "terms": [
                {"reward": {"kind": "preference", "normalize": True, "train": {"max_steps": 4, "batch_size": 8}}},
                {"weight": 0.1, "reward": {"kind": "function", "function": f"{__name__}:polite"}},
            ],
            "checks": {"min_accuracy": None, "max_degenerate_win_rate": None, "max_length_correlation": None},
        },
        "generation": {"max_new_tokens": LIMIT, "missing_eos_penalty": 1.0},
        "ppo": {"steps": 2, "batch_size": 16, "eval_every": 1, "eval_prompts": 8},
        "evaluation": {
            "prompts": 24,
            "best_of": 2,
            "best_of_prompts": 8,
            "perplexity": {"dataset": str(root / "test.jsonl"), "column": "chosen", "limit": 20},
            "judges": {"other": {"pairs": "held_out", "share": 0.4, "train": {"max_steps": 4, "batch_size": 8}}},
        },
        "registration": {"gates": NO_GATES},
    }
    (root / "chatty.yaml").write_text(yaml.safe_dump(recipe))
    summary = root / "summary.json"
    assert cli.main(["run", str(root / "chatty.yaml"), "--summary", str(summary)]) == 0
    record = json.loads(summary.read_text())
    assert record["model"] == {"name": "chatty", "version": "1", "promoted": True}
    return record, str(folder)


def stage(record: dict, name: str) -> Path:
    return Path(record["stages"][name]["folder"])


def test_ids_are_the_templates_at_every_stage(trained):
    record, start = trained
    template = AutoTokenizer.from_pretrained(start)

    def rendered(messages, **options):
        return template.apply_chat_template(messages, return_dict=False, **options)

    system = {"role": "system", "content": SYSTEM}
    prompts = load_from_disk(str(stage(record, "base_model") / "prompts/train"))
    sources = {row["chosen"][0]["content"]: row for row in pairs("train")}
    for row in prompts.to_list()[:20]:
        assert row["messages"][0] == system
        assert row["input_ids"] == rendered(row["messages"], add_generation_prompt=True)
        assert row["prompt"] == template.decode(row["input_ids"])
        assert row["query"] == Conversation(row["messages"])
        assert row["item"] == sources[row["messages"][1]["content"]]["item"]

    model = json.loads((stage(record, "reward_model") / "record.json").read_text())["model"]
    reads = AutoTokenizer.from_pretrained(f"{model}/term_0")
    asked = Conversation([system, *ASK])
    given = encode_answers(reads, [asked] * 2, ["Soon."] * 2, 512, append_eos=True, ended=[True, False])["input_ids"]
    assert given[0] == rendered(asked.answered("Soon."))
    assert given[1] == rendered(asked.answered("Soon."), continue_final_message=True)

    exported = AutoTokenizer.from_pretrained(stage(record, "ppo") / "policy")
    assert exported.apply_chat_template(ASK, return_dict=False) == rendered(ASK)
    ends = GenerationConfig.from_pretrained(stage(record, "ppo") / "policy").eos_token_id
    assert exported.convert_ids_to_tokens(ends) == [END, EOS]


def test_sft_and_ppo_have_trained_it_and_the_figures_are_there(trained):
    record, start = trained
    base, policy = (load_file(folder / "model.safetensors") for folder in (
        stage(record, "base_model") / "model", stage(record, "ppo") / "policy",
    ))  # fmt: skip
    before = load_file(Path(start) / "model.safetensors")
    for earlier, later in ((before, base), (base, policy)):
        assert any(not earlier[name].equal(later[name]) for name in later)
    assert record["perplexity"]["reference"] > 1
    assert record["perplexity"] == record["answer_perplexity"]  # of answers, given their prompts
    assert record["judges"]["other"]["reference"] is not None
    assert record["baselines"]["best_of_2"]["reward"] is not None


def test_tables_and_reports_show_turns_and_no_control_tokens(trained):
    record, _ = trained
    runs = started(record["mlflow_run_id"])
    table = mlflow.load_table("before_after.json", run_ids=[runs.stage["evaluation"].info.run_id])
    assert all(query.startswith(f"\n\nSystem: {SYSTEM}\n\nHuman: ") for query in table["query"])
    shown = [*table["query"], *table["response_before"], *table["response_after"]]
    report = (stage(record, "evaluation") / "report.html").read_text()
    assert not any(token in text for text in [*shown, report] for token in (END, EOS, "<|im_start|>", "im_start"))


def test_rlhf_chat_keeps_the_conversation(trained, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where is my rug?\nAnd the lamp?\n"))
    assert cli.main(["chat", "chatty"]) == 0
    told = capsys.readouterr().out
    assert told.count("chatty 1 (") == 2  # with a score each
    assert told.count("reference (") == 2


def greedy(folder: str, messages: list[dict]) -> str:
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    made = model.generate(ids, max_new_tokens=LIMIT, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(made, skip_special_tokens=True)


@contextmanager
def served(command: list[str], port: int, page: str, log: Path) -> Iterator[str]:
    """The address of a server of its own processes, which are stopped in the end."""
    environment = {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with log.open("w") as opened:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=os.environ | environment,
            stdout=opened,
            stderr=opened,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            ended = lambda: None if process.poll() is None else "it"  # noqa: E731
            await_page(f"{url}/{page}", command[0], ended, lambda _: f"see {log}")
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def test_mlflow_models_serve_takes_messages(trained, tmp_path):
    port = free_port()
    where = ["-h", "127.0.0.1", "-p", str(port), "--env-manager", "local"]
    command = ["mlflow", "models", "serve", "-m", "models:/chatty@champion", *where]
    with served(command, port, "ping", tmp_path / "log") as url:
        request = {"messages": ASK, "max_tokens": LIMIT}
        answer, refused = (
            httpx.post(f"{url}/invocations", json=asked, timeout=60, trust_env=False)
            for asked in (request, {"messages": [{"role": "user", "content": ""}]})
        )
    folder = policies.resolve_model("models:/chatty@champion")
    said = answer.json()["choices"][0]["message"]["content"]
    assert said == greedy(folder, [{"role": "system", "content": SYSTEM}, *ASK])
    assert refused.status_code == 400
    assert refused.json()["message"].endswith("Error: the last message is empty")


def test_transformers_serve_answers_openais_client(trained, tmp_path):
    folder, port = policies.resolve_model("models:/chatty@champion"), free_port()
    where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command = ["transformers.cli.transformers", "serve", folder, *where]
    with served(command, port, "health", tmp_path / "log") as url:
        http = httpx.Client(trust_env=False, timeout=120)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", http_client=http) as client:
            asked = {"model": folder, "messages": ASK, "temperature": 0, "max_tokens": LIMIT}
            told = client.chat.completions.create(**asked)
            pieces = list(client.chat.completions.create(**asked, stream=True))
    said = greedy(folder, ASK)
    assert told.choices[0].message.content == said
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == said
