"""A Hugging Face hub on 127.0.0.1 that takes what huggingface_hub's client sends for an upload: repositories, branches,
small files in the commit and weights by LFS."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USER, TOKEN = "me", "hf_" + "0" * 34


@dataclass
class Hub:
    address: str
    private: dict[str, bool] = field(default_factory=dict)  # its repositories
    branches: set[tuple[str, str]] = field(default_factory=set)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # of repository@branch
    stored: dict[str, bytes] = field(default_factory=dict)  # LFS objects by sha256
    messages: list[str] = field(default_factory=list)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Accepts TOKEN, and writes of USER's alone."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(200, {})

        def do_GET(self) -> None:
            name = self.path.removeprefix("/api/models/").partition("?")[0]
            self.answer(200 if name in hub.private else 404, {"id": name})

        def do_PUT(self) -> None:
            body = self.body()
            assert hashlib.sha256(body).hexdigest() == self.path.removeprefix("/lfs/")
            hub.stored[self.path.removeprefix("/lfs/")] = body
            self.answer(200, {})

        def do_POST(self) -> None:
            body, path = self.body(), self.path.partition("?")[0]
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid credentials in Authorization header"})
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif path == "/api/repos/create":
                self.create(json.loads(body))
            elif path.endswith("/info/lfs/objects/batch"):
                self.batch(json.loads(body))
            else:
                name, action, branch = path.removeprefix("/api/models/").rsplit("/", 2)
                {"branch": self.branch, "preupload": self.preupload, "commit": self.commit}[action](name, branch, body)

        def create(self, asked: dict) -> None:
            user, name = asked.get("organization") or USER, f"{asked.get('organization') or USER}/{asked['name']}"
            if user != USER:
                error = f'You don\'t have the rights to create a model under the namespace "{user}"'
                self.answer(403, {"error": error})
                return
            known = name in hub.private
            hub.private.setdefault(name, asked.get("visibility") == "private")
            self.answer(409 if known else 200, {"url": f"{hub.address}/{name}", "id": name, "name": name})

        def branch(self, name: str, branch: str, _: bytes) -> None:
            known = (name, branch) in hub.branches
            hub.branches.add((name, branch))
            self.answer(409 if known else 200, {"error": "Reference already exists"} if known else {})

        def preupload(self, name: str, branch: str, body: bytes) -> None:
            def mode(path: str) -> str:
                return "lfs" if path.endswith(".safetensors") else "regular"

            files = [
                {"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})

        def batch(self, asked: dict) -> None:
            objects = [
                {**found, "actions": {"upload": {"href": f"{hub.address}/lfs/{found['oid']}"}}}
                for found in asked["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})

        def commit(self, name: str, branch: str, body: bytes) -> None:
            files = hub.files.setdefault(f"{name}@{branch}", {})
            for line in map(json.loads, body.splitlines()):
                found = line["value"]
                if line["key"] == "header":
                    hub.messages.append(found["summary"])
                elif line["key"] == "file":
                    files[found["path"]] = base64.b64decode(found["content"])
                else:
                    files[found["path"]] = hub.stored[found["oid"]]
            self.answer(200, {"commitUrl": f"{hub.address}/{name}/commit/{'a' * 40}", "commitOid": "a" * 40})

        def body(self) -> bytes:
            if self.headers["Transfer-Encoding"] != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"] or 0))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def answer(self, status: int, said: dict) -> None:
            text = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
