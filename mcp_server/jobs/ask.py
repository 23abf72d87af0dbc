"""Ask a worker one question and wait for the answer: for checks that take seconds and leave no job behind.

The question lies in HOME/asks while it is asked. The next request removes the folders of requesting processes that were killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import RunFailed, from_dict
from mcp_server.jobs.process import worker_environment
from mcp_server.system import guard, paths
from mcp_server.system.files import scratch_folder

SECONDS: Final = 300
"""Importing mergekit takes 6–8 s on two idle cores; a busy machine needs several times that."""


def ask(worker: str, parameters: dict[str, Any], *, seconds: float = SECONDS) -> dict[str, Any]:
    """The result of `mcp_server.workers.<worker>` for these parameters. Raises the worker's own error, or `RunFailed`."""
    with scratch_folder(paths.home() / "asks", "ask-") as folder:
        policy = guard.current()
        roots = None if policy is None or policy.roots is None else list(map(str, policy.roots))
        request = {"kind": worker, "parameters": parameters, "roots": roots}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-P", "-m", f"mcp_server.workers.{worker}", str(folder)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                encoding="utf-8",
                check=False,
                timeout=seconds,
                cwd=folder,
                env=worker_environment(os.environ, threads=None, online=False),
            )
        except subprocess.TimeoutExpired as error:
            raise RunFailed(
                f"the {worker} worker did not answer within {seconds:.0f} s", "try again on a quieter machine"
            ) from error
        if done.returncode == 0:
            answer: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            return answer
        if (folder / "error.json").is_file():
            raise from_dict(json.loads((folder / "error.json").read_text(encoding="utf-8")))
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        raise RunFailed(
            f"the {worker} worker ended with status {done.returncode}: {last[0][:300]}", "this is a bug; please report it"
        )


def ask_planner(text: str, folder: Path) -> list[str]:
    """What mergekit's planner refuses about the recipe, in its own words; [] when it accepts.

    Raises `NotFound` when a source is not on this machine, `RunFailed` when the worker does not answer. Takes 6–20 s.
    """
    return [str(problem) for problem in ask("mergekit_planner", {"text": text, "folder": str(folder)})["problems"]]
