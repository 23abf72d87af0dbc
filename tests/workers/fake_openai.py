"""A small OpenAI-compatible server on the loopback: deterministic answers, and faults in the order in which a test asks.

The model behind it reads characters: it continues a prompt with its last word in upper case and a stop string behind it, and
gives every character the log-probability −1 − (code mod 3), spaces being the only ones that greedy decoding would not write.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = tuple[int, bytes] | None
"""(status, body) to answer instead, or null: close the connection without an answer."""


@dataclass
class Server:
    """`faults` are used up first, one a request. `texts_only` and `echoes` say what the server can do."""

    faults: list[Fault] = field(default_factory=list)
    texts_only: bool = False
    echoes: bool = True
    begins_with_bos: bool = False
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    fails_at: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, body: dict[str, Any]) -> Fault | str:
        with self.lock:
            self.seen.append(body)
            if self.faults:
                return self.faults.pop(0)
        if self.fails_at is not None and self.fails_at in json.dumps(body.get("prompt")):
            return (500, b"the GPU is on fire")
        return ""

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["model"] != "m":
            return 404, {"error": {"message": f"no model {body['model']}"}}
        if path.endswith("/chat/completions"):
            return 200, {"choices": [{"message": {"content": _reply(body["messages"][-1]["content"])}}]}
        prompt = body["prompt"]
        if self.texts_only and not isinstance(prompt, str):
            return 400, {"error": {"message": "prompt must be a string"}}
        if body.get("echo") and not self.echoes:
            return 400, {"error": {"message": "no echo here"}}
        text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        choice: dict[str, Any] = {"index": 0, "text": _reply(text)}
        if body.get("echo"):
            read = [*(["^"] if self.begins_with_bos else []), *text, "."]
            values = [-1.0 - ord(c) % 3 for c in read]
            best = [{c: 0.0 if c == " " else v} for c, v in zip(read, values, strict=True)]
            choice["logprobs"] = {"token_logprobs": [None, *values[1:]], "top_logprobs": [None, *best[1:]]}
        return 200, {"choices": [choice]}


def _reply(prompt: str) -> str:
    return (prompt.split() or ["nothing"])[-1].upper() + "<end>and more"


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Run until the block ends; `server.url` is then `http://127.0.0.1:PORT/v1`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.headers.append(dict(self.headers))
            fault = server.fault(body)
            if fault is None:
                self.close_connection = True
                return
            if isinstance(fault, tuple):
                self.send(*fault)
                return
            status, answer = server.answer(self.path, body)
            self.send(status, json.dumps(answer).encode())

        def do_GET(self) -> None:
            self.send(200, json.dumps({"data": [{"id": "m"}]}).encode())

        def send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
