"""What a sweep says while its tasks run: its own count, and the newest word of the process that works just now.

The processes write their progress into their folders, on this machine or on a file system that a cluster shares, so the same
reading serves both executors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from mcp_server.system.repeating import repeating
from mcp_server.workers.protocol import Job
from mcp_server.workers.sweeping.tasks import Task, places

EVERY_S: Final = 2.0
TAIL_BYTES: Final = 4096


class Progress:
    """`tell` is the sweep's own word; `following` repeats it with what the tasks say until the block ends."""

    def __init__(self, job: Job, every_s: float = EVERY_S) -> None:
        self._job, self._every_s = job, every_s
        self._now: tuple[str, int, int | None] = ("starting", 0, 1)
        self._ends: float | None = None
        self._leaders: Sequence[str] = ()

    def tell(
        self,
        stage: str,
        done: int,
        total: int | None,
        message: str = "",
        *,
        left: float | None = None,
        leaders: Sequence[str] = (),
    ) -> None:
        """`left`: seconds until the sweep ends; `leaders`: the best so far, one a line."""
        self._now, self._leaders = (stage, done, total or None), leaders
        self._ends = None if left is None else time.monotonic() + left
        self._say(message)

    def _say(self, message: str) -> None:
        left = None if self._ends is None else max(self._ends - time.monotonic(), 0.0)
        self._job.progress(
            *self._now, unit="candidates", message=message, every_seconds=0.0, left_seconds=left, leaders=self._leaders
        )

    @contextmanager
    def following(self, tasks: Sequence[Task]) -> Iterator[None]:
        """Read along on a thread of its own; a file that is not there yet, or is half written, says nothing."""
        last = ""

        def follow() -> None:
            nonlocal last
            if (word := newest_word(tasks)) and word != last:
                last = word
                self._say(word)

        with repeating(follow, self._every_s):
            yield


def newest_word(tasks: Sequence[Task]) -> str:
    """`ties lambda=0.5: persona on taskmaster_persona 12/40 prompts`, or nothing."""
    found = [(file.stat().st_mtime, task.name, file) for task in tasks for place in places(task) if (file := _events(place))]
    if not found:
        return ""
    _, name, file = max(found)
    said = _last_line(file)
    total, unit = said.get("total"), said.get("unit", "")
    count = f" {said.get('done', 0):g}/{total:g} {unit}".rstrip() if isinstance(total, int | float) and total > 1 else ""
    return f"{name}: {said['stage']}{count}" if said.get("stage") else ""


def _events(place: Path) -> Path | None:
    file = place / "events.jsonl"
    return file if file.is_file() else None


def _last_line(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
        lines = stream.read().splitlines()
    for line in reversed(lines):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        return said if isinstance(said, dict) else {}
    return {}
