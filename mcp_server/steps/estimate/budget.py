"""What a cost is held against: the memory that was named, and the disk that is free."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

METADATA_BYTES: Final = 40_000_000
"""Config, tokenizer, card and journal beside the weights: tokenizer.json of a 256 K vocabulary has 33 MB."""


def free_disk(out: Path) -> int:
    """Bytes free on the file system that `out` will lie on."""
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    return shutil.disk_usage(place).free


def fits(anon: int, disk: int, ram: float | None, free: int | None) -> bool | None:
    """Unknown budgets decide nothing: False if one known budget is exceeded, True if memory is known and held, else None.

    All in bytes.
    """
    if (ram is not None and anon > ram) or (free is not None and disk > free):
        return False
    return True if ram is not None else None
