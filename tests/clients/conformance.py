"""The protocol's conformance suite against the HTTP server: the scenarios that need no fixtures of their own."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.clients.ground import LAUNCHER, ROOT, Check, environment, require, run

SCENARIOS = (
    "tools-list", "resources-list", "prompts-list", "completion-complete", "sep-2164-resource-not-found",
    "dns-rebinding-protection",
    "caching", "http-header-validation", "server-initialize", "ping", "server-session-lifecycle",
)  # fmt: skip


def checks() -> list[Check]:
    return [("conformance", "scenarios over HTTP", partial(scenarios, SCENARIOS))]


@contextmanager
def http_server(**more: str) -> Iterator[int]:
    """A server process on a free loopback port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with subprocess.Popen(
        [LAUNCHER, "--http", str(port)], cwd=ROOT, env=environment(**more), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as server:
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()


def scenarios(names: tuple[str, ...]) -> str:
    passed, failed = 0, []
    with http_server() as port:
        for name in names:
            ended = run("conformance", "server", "--url", f"http://127.0.0.1:{port}/mcp", "--scenario", name)
            found = re.search(r"Passed: (\d+)/(\d+), (\d+) failed", ended.stdout)
            if ended.returncode != 0 or found is None or found[3] != "0":
                failed.append(f"{name}: {ended.stdout[-400:]} {ended.stderr[-200:]}")
            else:
                passed += int(found[1])
    require(not failed, "\n".join(failed))
    return f"{len(names)} scenarios, {passed} checks"
