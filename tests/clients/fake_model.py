"""A Messages API on loopback whose model follows a script: enough for a whole Claude Code turn without a model or a network.

The script is a list of steps. A step gets the conversation so far and returns what the "model" does: text, or tool calls. What
Claude Code sends (skills, tools, tool results) is kept for the checks.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Conversation = list[dict[str, Any]]
Block = dict[str, Any]
Step = Callable[[Conversation], list[Block]]


def say(text: str) -> list[Block]:
    return [{"type": "text", "text": text}]


def use(name: str, arguments: dict[str, Any], number: int) -> list[Block]:
    return [{"type": "tool_use", "id": f"toolu_{number:04}", "name": name, "input": arguments}]


@dataclass
class FakeModel:
    """Serves one script; `requests` are the bodies of the main conversation's requests."""

    script: list[Step]
    requests: list[dict[str, Any]] = field(default_factory=list)
    at: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> str:
        """Start; returns the base URL."""
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                self.answer({"data": [], "has_more": False})

            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
                if "count_tokens" in self.path:
                    self.answer({"input_tokens": 1000})
                    return
                if not self.path.startswith("/v1/messages"):
                    self.answer({})
                    return
                message = model.reply(body)
                if body.get("stream"):
                    self.stream(message)
                else:
                    self.answer(message)

            def answer(self, content: dict[str, Any]) -> None:
                data = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def stream(self, message: dict[str, Any]) -> None:
                data = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events(message)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *ignored: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """The next step of the script for the conversation with tools; a word for side requests (titles, summaries)."""
        blocks = say("ok")
        if body.get("tools"):
            with self.lock:
                self.requests.append(body)
                step = self.script[min(self.at, len(self.script) - 1)]
                self.at += 1
            blocks = step(body["messages"])
        stop = "tool_use" if any(b["type"] == "tool_use" for b in blocks) else "end_turn"
        return {
            "id": f"msg_{len(self.requests):04}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", "fake"),
            "content": blocks,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 10},
        }


def events(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The message as the API streams it."""
    found: list[dict[str, Any]] = [{"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}]
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            empty, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            empty, delta = {**block, "input": {}}, {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        found.append({"type": "content_block_start", "index": index, "content_block": empty})
        found.append({"type": "content_block_delta", "index": index, "delta": delta})
        found.append({"type": "content_block_stop", "index": index})
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    found.append({"type": "message_delta", "delta": stop, "usage": {"output_tokens": 10}})
    found.append({"type": "message_stop"})
    return found


def last_result(conversation: Conversation) -> str:
    """The text of the newest tool result."""
    for message in reversed(conversation):
        if message["role"] == "user" and isinstance(message["content"], list):
            for block in reversed(message["content"]):
                if block.get("type") == "tool_result":
                    return text_of(block["content"])
    return ""


def text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))
