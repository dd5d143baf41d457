"""A judge behind a server of others: `transformers serve` with a tiny model, whose replies are noise."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from operated import free_port
from registered import make_policy
from transformers import AutoTokenizer

from rlhf_lib.errors import JudgeFailed
from rlhf_lib.evaluation.llm.judge import LLMJudge
from rlhf_lib.evaluation.llm.verdicts import Verdicts
from rlhf_lib.evaluation.opinions import check_judge
from rlhf_lib.recipe import JudgeConfig

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
STARTS = 400.0  # seconds


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(the server's base_url, the model's name there)."""
    root = tmp_path_factory.mktemp("served")
    folder = make_policy(root / "model", seed=1, positions=4096)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", folder, "--port", str(port)]
    with (root / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--device", "cpu"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        deadline = time.monotonic() + STARTS
        while True:
            assert server.poll() is None, (root / "log").read_text()
            assert time.monotonic() < deadline, (root / "log").read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        server.terminate()
        server.wait(30)


def test_noise_is_asked_twice_counted_and_no_opinion(served, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url, model = served
    section = JudgeConfig.model_validate(
        {"kind": "llm", "model": model, "llm": {"base_url": url, "max_tokens": 8, "timeout": 120}}
    )
    check_judge("noise", section)
    judge = LLMJudge("noise", section, Verdicts(tmp_path / "v.sqlite"), "r")
    found = judge.compare(["hi", "hello"], ["yes", "same"], ["no", "same"])
    assert found.values == [None, 0.5]
    assert (found.record["unreadable"], found.record["requests"], judge.verdicts.spent(judge.purse)) == (1, 2, 2)
    with pytest.raises(JudgeFailed, match=r"no readable verdict on 1 of 2 prompts \(1 were cut: raise"):
        judge.check(found)
    fluent = section.model_copy(update={"model": "no-such/model"})
    with pytest.raises(JudgeFailed, match=r"^evaluation\.judges\.noise: "):
        LLMJudge("noise", fluent, judge.verdicts, "r").compare(["hi"], ["yes"], ["no"])
