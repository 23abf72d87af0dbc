"""What a merge is held against: its inputs warm in the page cache, and a copy of its output that is synced to disk."""

from __future__ import annotations

import os
import time
from pathlib import Path


def warm(folders: list[Path]) -> None:
    """Read the inputs once, so that both sides find them in the page cache as far as it holds them."""
    for folder in folders:
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 23):
                    pass


def synced_copy(folder: Path, out: Path) -> float:
    """Seconds to copy a checkpoint's weights and have the copy on disk; the copy is removed."""
    start = time.monotonic()
    out.mkdir(parents=True)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as source, (out / path.name).open("wb", buffering=0) as target:
            while block := source.read(1 << 22):
                target.write(block)
            os.fsync(target.fileno())
    seconds = time.monotonic() - start
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    return seconds
