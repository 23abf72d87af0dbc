"""A part of a worker's work in a process of its own, for what may be killed or end it: a model that is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_server.system.files import write_json


@dataclass(frozen=True)
class Ended:
    """How it went: the exit status (negative for a signal, None when the time was up), and what it left."""

    status: int | None
    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        return found

    @property
    def error(self) -> dict[str, Any] | None:
        """The error that it reported, as `MergingError.as_dict` has it."""
        file = self.folder / "error.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    @property
    def last_word(self) -> str:
        """The last line of its log."""
        lines = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "no message"


def run_apart(module: str, folder: Path, request: dict[str, Any], seconds: float) -> Ended:
    """Run a worker's module on `request` in `folder`, for so many seconds at most."""
    folder.mkdir(exist_ok=True)
    (folder / "error.json").unlink(missing_ok=True)
    write_json(folder / "request.json", request)
    command = [sys.executable, "-P", "-m", module, str(folder)]
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        try:
            ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            return Ended(None, folder)
    return Ended(ended.returncode, folder)
