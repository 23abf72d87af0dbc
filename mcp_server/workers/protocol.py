"""How a worker talks: files in its job folder.

in    request.json   {"kind": …, "parameters": {…}}
out   events.jsonl   one JSON object a line; progress is {"event": "progress", "stage", "done", "total", "unit", "message"}
      result.json    a result model, written atomically when the work is whole
      error.json     `MergingError.as_dict()` when the work failed in a way we know

The exit status is 0 or the error's own. Anything else that is raised is a bug: its traceback goes to stderr (the job's log)
and the exit status is 70.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mcp_server.core.errors import MergingError

EXIT_BUG = 70


def write_json(path: Path, data: Any) -> None:
    """Replace `path` atomically and durably; a reader sees the old or the new content, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(data, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class Job:
    """A worker's view of its job folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
        self.kind: str = request["kind"]
        self.parameters: dict[str, Any] = request["parameters"]
        self._last = 0.0

    def event(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False)
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def progress(
        self,
        stage: str,
        done: float = 0,
        total: float | None = None,
        *,
        unit: str = "",
        message: str = "",
        every_seconds: float = 0.25,
    ) -> None:
        """Report progress, at most once per `every_seconds` except at the end of a stage."""
        now = time.monotonic()
        if now - self._last < every_seconds and done not in (0, total):
            return
        self._last = now
        self.event("progress", stage=stage, done=done, total=total, unit=unit, message=message)


def run_worker(work: Callable[[Job], BaseModel | dict[str, Any]]) -> int:
    """`sys.exit(run_worker(main))` is the last line of every worker; argv[1] is the job folder."""
    job = Job(Path(sys.argv[1]))
    try:
        result = work(job)
    except MergingError as error:
        write_json(job.folder / "error.json", error.as_dict())
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception:  # noqa: BLE001 - the process boundary: the traceback goes to the log, the exit status says "bug"
        traceback.print_exc()
        return EXIT_BUG
    write_json(job.folder / "result.json", result.model_dump(mode="json") if isinstance(result, BaseModel) else result)
    return 0
