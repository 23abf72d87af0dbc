"""A store of thousands of ended jobs, written as a job's runner writes them but without its flushes."""

from __future__ import annotations

from pathlib import Path

STATES = ("succeeded", "failed", "cancelled")


def fill(home: Path, count: int) -> None:
    """Jobs of all three states in turn; the last is the newest."""
    for number in range(count):
        name = f"merge-20260101-{number // 3600:02}{number // 60 % 60:02}{number % 60:02}-0000"
        folder = home / "jobs" / name
        folder.mkdir(parents=True)
        state = STATES[number % 3]
        record = f'{{"job_id": "{name}", "kind": "merge", "state": "{state}", "created": "2026-01-01T00:00:00Z"}}'
        (folder / "status.json").write_text(record, encoding="utf-8")
    home.chmod(0o700)
