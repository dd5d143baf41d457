"""A registered chat policy's folder under `transformers serve`, asked by OpenAI's client."""

import os
import subprocess
import sys

import httpx
import openai
from operated import free_port
from registered import policy_folders  # noqa: F401
from registered_chat import ASK, LATER, one_chat_version, spelt_out  # noqa: F401
from tiny_models import one_thread  # noqa: F401

from flows.servers.services import await_page
from tasks.registry import policies


def test_transformers_serve_answers_as_the_policy_does(chat, tmp_path):
    folder, port = policies.resolve_model("models:/letters@champion"), free_port()
    log = (tmp_path / "log").open("w")
    where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen(
        [sys.executable, "-m", "transformers.cli.transformers", "serve", folder, *where],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=log,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        await_page(
            f"{url}/health",
            "transformers serve",
            lambda: None if server.poll() is None else "it",
            lambda _: f"see {log.name}",
        )
        with openai.OpenAI(
            base_url=f"{url}/v1", api_key="any", http_client=httpx.Client(trust_env=False, timeout=120)
        ) as client:
            system = [{"role": "system", "content": "Be kind."}]  # which it doesn't know
            asked = {"model": folder, "temperature": 0, "max_tokens": 24}
            first = client.chat.completions.create(messages=system + ASK, **asked)
            pieces = list(client.chat.completions.create(messages=system + LATER, stream=True, **asked))
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()
    text, ids, length = spelt_out(chat, ASK)
    assert (first.choices[0].message.content, first.choices[0].finish_reason) == (text, "stop")
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (length, len(ids))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == spelt_out(chat, LATER)[0]
