#!/usr/bin/env python3
"""How fast the MCP server starts and answers, against its promises. Exit 1 when one is broken.

usage: run.py [--quick]

- start: from spawning the process to the first answered tools/list, at most the SDK's own import (measured in the same run,
alternating) plus 0.4 s; memory of the process then, at most 100 MB (what cannot be reclaimed, RssAnon). - latency: every
read-only tool on local checkpoints, at most 50 ms at the median. - load: 50 calls at once, each answered with its own
result. - a store of 10,000 jobs: listing and status, at most 50 ms at the median.

Sources: the running example (a 135 M model and two adapters) when the demo's base is there, else tiny checkpoints.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mcp_server.system.paths import demo_base_dir  # noqa: E402

DEMO_BASE = demo_base_dir()
START_OVER_SDK_S, ANON_MB, MEDIAN_MS = 0.4, 100, 50
HANDSHAKE = [
    {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "0"}},
    },
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
]


class Server:
    """A server process on stdio, one request at a time or many at once."""

    def __init__(self, home: Path, cwd: Path) -> None:
        self.begin = time.perf_counter()
        roots = os.pathsep.join(map(str, (ROOT, home, DEMO_BASE)))
        environment = {**os.environ, "MODEL_MERGING_HOME": str(home), "MODEL_MERGING_ROOTS": roots}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mcp_server.server"],
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.number = 0
        self.send(*HANDSHAKE)

    def send(self, *messages: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(json.dumps(message).encode() + b"\n" for message in messages))
        self.process.stdin.flush()

    def request(self, method: str, **params: Any) -> int:
        self.number += 1
        self.send({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params})
        return self.number

    def answers(self, *numbers: int) -> dict[int, dict[str, Any]]:
        """Read until all of these are answered."""
        assert self.process.stdout is not None
        found: dict[int, dict[str, Any]] = {}
        while set(found) < set(numbers):
            message = json.loads(self.process.stdout.readline())
            if message.get("id") in numbers:
                found[message["id"]] = message
        return found

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = self.request(method, **params)
        return self.answers(number)[number]["result"]

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = self.ask("tools/call", name=tool, arguments=arguments)
        if result.get("isError"):
            raise SystemExit(f"{tool}: {result['content'][0]['text']}")
        return dict(result["structuredContent"])

    def anon_mb(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024 / 1e6
        return float("nan")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def sdk_import_s() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mcp.server"], check=True)
    return time.perf_counter() - begin


def start(home: Path, rounds: int) -> list[tuple[str, str, str, bool]]:
    """SDK import and server start in turn, so that a busy machine slows both."""
    sdk, ours, anon = [], [], []
    for _ in range(rounds):
        sdk.append(sdk_import_s())
        server = Server(home, ROOT)
        server.ask("tools/list")
        ours.append(time.perf_counter() - server.begin)
        anon.append(server.anon_mb())
        server.close()
    over = statistics.median(b - a for a, b in zip(sdk, ours, strict=True))
    shown = f"{statistics.median(ours):.2f} s, the SDK's import alone {statistics.median(sdk):.2f} s"
    return [
        ("spawn to first tools/list", shown, f"≤ SDK + {START_OVER_SDK_S} s (is + {over:.2f} s)", over <= START_OVER_SDK_S),
        ("memory after it (RssAnon)", f"{max(anon):.0f} MB", f"≤ {ANON_MB} MB", max(anon) <= ANON_MB),
    ]


def arguments_of(home: Path) -> dict[str, dict[str, Any]]:
    """A call of each read-only tool on local checkpoints."""
    example = ROOT / "examples" / "taskmaster"
    if (DEMO_BASE / "config.json").is_file() and (example / "tools").is_dir():
        refs, named = [str(example / "persona"), str(example / "tools")], str(DEMO_BASE)
        models = [f"{named}+{ref}" for ref in refs]
    else:
        from tests import tiny

        named = str(tiny.write_model(home / "base"))
        models = refs = [str(tiny.write_model(home / name, seed)) for seed, name in enumerate(("code", "chat"), 1)]
    sources = [{"name": f"source{n}", "ref": ref, "training_examples": 200 + n} for n, ref in enumerate(refs)]
    scenario = {"sources": sources, "base_model": named, "relation": {"data_overlap": 0.1, "capabilities": "complementary"}}
    entries = "".join(f"  - model: {model}\n    parameters: {{weight: 0.5}}\n" for model in models)
    recipe = f"merge_method: task_arithmetic\nbase_model: {named}\nmodels:\n{entries}dtype: bfloat16\n"
    return {
        "inspect_models": {"refs": refs, "base": named},
        "recommend_strategy": {"scenario": scenario},
        "list_strategies": {},
        "render_config": {},
        "validate_config": {"recipe": recipe},
        "estimate_ram": {"recipe": recipe, "ram_gib": 12},
        "list_merges": {},
        "merge_status": {},
        "merge_logs": {},
    }


def finished_job(home: Path) -> str:
    """A job to ask about."""
    os.environ["MODEL_MERGING_HOME"] = str(home)
    from mcp_server import jobs
    from tests.fake_worker import scripted

    started = jobs.start(scripted("verify", script=[]), worker="tests.fake_worker")
    return jobs.wait(started.job_id, 60).job_id


def latency(home: Path, rounds: int) -> list[tuple[str, str, str, bool]]:
    calls = arguments_of(home)
    job_id = finished_job(home)
    server = Server(home, ROOT)
    calls["merge_status"] = calls["merge_logs"] = {"job_id": job_id}
    calls["render_config"] = {"plan": server.call("recommend_strategy", **calls["recommend_strategy"])}
    rows = []
    for tool, arguments in calls.items():
        first = timed(server, tool, arguments)
        taken = sorted(timed(server, tool, arguments) for _ in range(rounds))
        middle = statistics.median(taken)
        shown = f"{middle:.0f} ms (95 %: {taken[int(0.95 * (len(taken) - 1))]:.0f}; first call {first:.0f})"
        rows.append((tool, shown, f"≤ {MEDIAN_MS} ms", middle <= MEDIAN_MS))
    rows.append(parallel(server))
    server.close()
    return rows


def crowded(home: Path, rounds: int, count: int = 10_000) -> list[tuple[str, str, str, bool]]:
    """Listing and status where many jobs have ended; the first listing of a state builds the index."""
    from tests.jobs.crowd import fill

    fill(home, count)
    server = Server(home, ROOT)
    newest = server.call("list_merges")["jobs"][0]["job_id"]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("list_merges", {}),
        ("list_merges", {"state": "failed"}),
        ("merge_status", {"job_id": newest}),
    ]
    rows = []
    for tool, arguments in calls:
        first = timed(server, tool, arguments)
        middle = statistics.median(timed(server, tool, arguments) for _ in range(rounds))
        what = f"{tool}{' of a state' if 'state' in arguments else ''}, {count:,} jobs"
        rows.append((what, f"{middle:.0f} ms (first call {first:.0f})", f"≤ {MEDIAN_MS} ms", middle <= MEDIAN_MS))
    server.close()
    return rows


def timed(server: Server, tool: str, arguments: dict[str, Any]) -> float:
    begin = time.perf_counter()
    server.call(tool, **arguments)
    return (time.perf_counter() - begin) * 1000


def parallel(server: Server, count: int = 50) -> tuple[str, str, str, bool]:
    expected = [s["id"] for s in server.call("list_strategies", limit=50)["strategies"]]
    begin = time.perf_counter()
    wanted = {
        server.request("tools/call", name="list_strategies", arguments={"offset": n % len(expected), "limit": 1}): n
        % len(expected)
        for n in range(count)
    }
    answers = server.answers(*wanted)
    seconds = time.perf_counter() - begin
    right = sum(answers[i]["result"]["structuredContent"]["strategies"][0]["id"] == expected[n] for i, n in wanted.items())
    return (f"{count} calls at once", f"{right} right, {seconds:.2f} s", f"{count} right", right == count)


def main() -> int:
    quick = "--quick" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch).resolve()
        rows = start(home, 3 if quick else 9)
        rows += latency(home, 9 if quick else 51)
        rows += crowded(home / "crowded", 9 if quick else 51)
    print("| what | measured | promised | |\n| --- | --- | --- | --- |")
    for what, measured, promised, kept in rows:
        print(f"| {what} | {measured} | {promised} | {'kept' if kept else '**broken**'} |")
    return 0 if all(kept for *_, kept in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
