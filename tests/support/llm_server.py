"""An OpenAI-compatible server on a free port, whose model is a rule: for tests of judges that are language models.

Its judge prefers the answer that holds more of the conversation's words; `rule` may be another one. `script` are
statuses, or replies as they are, that come first.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Rule = Callable[[str, str, str], str]  # conversation, answer A, answer B -> the reply

_ASKED = re.compile(
    r"\[The conversation\]\n(.*)\n\[End of the conversation\].*"
    r"\[Assistant A's answer\]\n(.*)\n\[End of assistant A's answer\].*"
    r"\[Assistant B's answer\]\n(.*)\n\[End of assistant B's answer\]",
    re.DOTALL,
)
TOO_LONG = "This model's maximum context length is 2048 tokens. However, your prompt contains 3000 input tokens."
_WORDS = {
    400: "'temperature' does not support 0 with this model",
    401: "Incorrect API key provided",
    404: "The model `m` does not exist",
    429: "Rate limit reached",
    500: "The server had an error",
}


def overlap(conversation: str, answer_a: str, answer_b: str) -> str:
    """The answer with more of the conversation's words wins; a tie where they have as many."""
    words = set(conversation.lower().split())
    a, b = (len(words & set(answer.lower().split())) for answer in (answer_a, answer_b))
    return f"A shares {a} words, B {b}.\n\n**[[{'A' if a > b else 'B' if b > a else 'C'}]]**"


def first_wins(conversation: str, answer_a: str, answer_b: str) -> str:
    """Position bias, pure."""
    return "[[A]]"


@dataclass
class Server:
    """`bodies`, `keys`: of the chat requests that came, in their order. `context`: most characters of one."""

    rule: Rule = overlap
    models: list[str] | None = field(default_factory=lambda: ["m"])  # None: listing them fails
    script: list[int | str] = field(default_factory=list)
    context: int | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    wait: threading.Barrier | None = None  # a request is answered once so many are there
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def asked(self, body: dict[str, Any]) -> tuple[str, str, str]:
        """Conversation, answer A, answer B of a request."""
        found = _ASKED.search(body["messages"][0]["content"])
        assert found is not None
        return found[1], found[2], found[3]


@contextmanager
def llm_server(rule: Rule = overlap, **options: Any) -> Iterator[Server]:
    """The server, running during the block."""
    state = Server(rule=rule, **options)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def _send(self, status: int, body: Any) -> None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After-Ms", "1")
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            if self.path != "/v1/models":
                self._send(404, {"error": {"message": "no such path"}})
                return
            if state.models is None:
                self._send(500, {"error": {"message": _WORDS[500]}})
                return
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "t"} for name in state.models]
            self._send(200, {"object": "list", "data": models})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.bodies.append(body)
                state.keys.append(self.headers["Authorization"])
                state.headers.append(dict(self.headers))
                scripted = state.script.pop(0) if state.script else None
            if state.wait is not None:
                state.wait.wait(30)
            if self.path != "/v1/chat/completions":
                self._send(200, "<html>welcome</html>")
            elif isinstance(scripted, int):
                self._send(scripted, {"error": {"message": _WORDS[scripted], "type": "t", "code": None}})
            elif state.context is not None and sum(len(m["content"]) for m in body["messages"]) > state.context:
                self._send(400, {"error": {"message": TOO_LONG, "type": "BadRequestError", "code": 400}})
            else:
                reply = scripted if scripted is not None else state.rule(*state.asked(body))
                choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
                if reply.endswith("..."):
                    choice["finish_reason"] = "length"
                self._send(
                    200,
                    {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]},
                )

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
