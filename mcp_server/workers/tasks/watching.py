"""What tasks say while they run. Their processes write progress into their folders, on this machine or on a file system that a
cluster shares, so the same reading serves both executors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from mcp_server.workers.tasks.task import Task, places

EVERY_S: Final = 2.0
"""Between two looks."""
TAIL_BYTES: Final = 4096


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
