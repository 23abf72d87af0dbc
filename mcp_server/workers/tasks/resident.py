"""A worker process that stays: it runs one job folder after the other, so that imports and loaded weights serve them all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mcp_server.system.paths import PACKAGE
from mcp_server.workers.protocol import RUNNER_PID


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Of a process that runs this package's modules and dies with this one."""
    return {**os.environ, **environment, "PYTHONPATH": str(PACKAGE.parent), RUNNER_PID: str(os.getpid())}


class Resident:
    """One process of `module`, which reads folders from standard input and answers with exit statuses. It is started again when
    it died; not for two threads at once."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self.module = module
        self._environment = dict(environment)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process unless it runs. It dies with the thread that starts it, so let that be one that stays."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=child_environment(self._environment),
            )

    def run(self, folder: Path) -> int:
        """The exit status of the work in `folder`; that of the process where it died meanwhile."""
        self.start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{folder}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return int(answer)
        self._process = None
        return process.wait() or 1

    def close(self) -> None:
        """End the process; what it was doing is left as a killed worker leaves it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
