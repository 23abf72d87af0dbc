"""What workers report while they work: the last progress of a job's `events.jsonl`, read from its end."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from mcp_server.core.models.job import Progress

_TAIL_BYTES = 16_384


def last_progress(folder: Path) -> Progress | None:
    """The newest readable progress line. Lines that are no progress, half-written or malformed are passed over."""
    for name in ("events.jsonl", "events.1.jsonl"):  # a full file was put aside a moment ago
        try:
            with (folder / name).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
                lines = file.read().splitlines()
        except FileNotFoundError:
            continue
        if (found := _newest(lines)) is not None:
            return found
    return None


def _newest(lines: list[bytes]) -> Progress | None:
    for line in reversed(lines):
        try:
            event = json.loads(line)
            if event["event"] == "progress":
                return Progress.model_validate({k: v for k, v in event.items() if k in Progress.model_fields})
        except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
            continue
    return None
