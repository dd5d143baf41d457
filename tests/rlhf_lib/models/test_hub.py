"""Whether the hub answers, asked once, against real sockets."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants
from transformers import GPT2Config

from rlhf_lib.errors import DataError, ModelError
from rlhf_lib.models import hub, loading


@pytest.fixture
def online(monkeypatch):
    """The hub as a user has it: not offline, at an address that a test sets; nothing asked yet."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_asked", {})
    return lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.fixture
def closed_port():
    """An address at which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def server():
    """A server that refuses everything, as the hub does what it doesn't have; and what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()


def test_a_hub_that_answers_is_asked_once(online, server):
    address, asked = server
    online(address)
    assert [hub.unreachable() for _ in range(3)] == [None] * 3
    assert len(asked) == 1
    with hub.offline_if_unreachable() as reason:
        assert reason is None
        assert not constants.is_offline_mode()


def test_a_hub_that_does_not_answer_leaves_the_cache(online, closed_port, monkeypatch):
    online(closed_port)
    with hub.offline_if_unreachable() as reason:
        assert reason.startswith(f"{closed_port} doesn't answer: ")
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
    monkeypatch.setattr(hub, "_ask", lambda: pytest.fail("asked again at once"))
    assert "refused" in hub.unreachable()


def test_a_hub_that_swallows_requests_is_not_waited_for(online, monkeypatch):
    monkeypatch.setattr(hub, "ANSWER_WITHIN", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        online(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert hub.unreachable() is not None


def test_offline_mode_asks_nothing(online, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_ask", lambda: pytest.fail("asked"))
    assert hub.unreachable() == "HF_HUB_OFFLINE is set"


def test_what_is_only_on_the_hub_is_one_line_and_what_is_cached_loads(online, closed_port):
    from rlhf_lib.data.sources import load_split
    from rlhf_lib.recipe import SourceConfig
    from tasks.tracking.retries import is_retryable

    online(closed_port)
    for load in (loading.load_config, loading.fingerprint):
        with pytest.raises(ModelError, match=rf"nobody/nothing .*reach \({closed_port} doesn't.*local folder") as told:
            load("nobody/nothing")
        assert not is_retryable(told.value)
    with pytest.raises(DataError, match=rf"nobody/none .*out of reach \({closed_port} doesn't.*local folder") as told:
        load_split(SourceConfig(dataset="nobody/none"))
    assert not is_retryable(told.value)

    cached = hub.Path(constants.HF_HUB_CACHE) / "models--some--body"
    GPT2Config(n_positions=77).save_pretrained(cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert loading.load_config("some/body").n_positions == 77
    assert hub.cached_sizes("some/body", "config.json")[0] > 100
    assert hub.cached_sizes("some/body", "model.safetensors") == []
