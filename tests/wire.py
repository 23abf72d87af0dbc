"""The real server process on stdio, line by line, so that tests can send it rubbish and kill it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HANDSHAKE = [
    {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}},
    },
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
]


class Wire:
    """Lines to and from a server process."""

    def __init__(self, home: Path, cwd: Path, **environment: str) -> None:
        variables = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "MODEL_MERGING_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mcp_server.server"],
            cwd=cwd,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def send(self, *messages: Any) -> None:
        assert self.process.stdin is not None
        for message in messages:
            line = message if isinstance(message, bytes) else json.dumps(message).encode()
            self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def call(self, number: int, tool: str, **arguments: Any) -> None:
        """Send a tool call; its answer, if it is wanted, comes from `answer_to`."""
        params = {"name": tool, "arguments": arguments}
        self.send({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})

    def answer_to(self, number: int) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            if message.get("id") == number:
                return dict(message)
        raise AssertionError(f"the server went away without answering {number}")

    def result_of(self, number: int) -> dict[str, Any]:
        """What a tool call gave back; fails with the server's words when it was refused."""
        result = self.answer_to(number)["result"]
        assert not result.get("isError"), result["content"]
        return dict(result["structuredContent"])

    def leave(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(15)
        self._close()
        return code

    def kill(self) -> None:
        """kill -9, if it still lives."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what was on its way to it is lost with it
            self.process.stdin.close()
        self._close()

    def _close(self) -> None:
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
