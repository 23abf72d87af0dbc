"""Copies of headers: a repository's JSON files, and of each safetensors file the bytes up to the end of its header.

They lie in the store, are opened like any checkpoint, and hold no weight. So they are readable only inside `looking()`, which the
steps that judge (inspect, recommend, validate, estimate) enter; for a merge a model that is not here stays not here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import MergingError, NotFound
from mcp_server.system import paths

LISTING: Final = "listing.json"
_looking: ContextVar[dict[object, Any] | None] = ContextVar("headers may be read from the hub; what was opened", default=None)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at one commit. `sizes` in bytes; `blobs` are SHA-256 of large files and git's hashes of others."""

    hub_id: str
    commit: str
    sizes: dict[str, int]
    blobs: dict[str, str]


@contextmanager
def looking() -> Iterator[None]:
    """Judge hub ids by their headers, in this call and what it calls; each model is opened once. Works as a decorator too."""
    token = _looking.set(opened if (opened := _looking.get()) is not None else {})
    try:
        yield
    except MergingError as error:
        error.message = by_id(error.message)
        raise
    finally:
        _looking.reset(token)


def by_id(text: str) -> str:
    """The text with the files of copies named as files of their repositories: where copies lie tells nobody anything."""
    return re.sub(rf"{re.escape(str(root()))}/([^/\s]+?)--([^/\s]+)/[0-9a-f]{{40,64}}", r"\1/\2", text)


def is_looking() -> bool:
    return _looking.get() is not None


def opened_while_looking() -> dict[object, Any] | None:
    """What this call has opened so far; None outside `looking()`, where files are read each time they are asked for."""
    return _looking.get()


def root() -> Path:
    return paths.cache_dir() / "hub_headers"


def is_copy(path: str | Path) -> bool:
    """Whether a folder is a copy of headers, or a file lies in one."""
    return str(path).startswith(f"{root()}{os.sep}")


def listing_of(folder: Path) -> Listing:
    return _read(str(folder / LISTING))


@lru_cache(maxsize=256)
def _read(file: str) -> Listing:
    return Listing(**json.loads(Path(file).read_text(encoding="utf-8")))


def keep_listing(folder: Path, listing: Listing) -> None:
    (folder / LISTING).write_text(json.dumps(asdict(listing)), encoding="utf-8")


def whole_bytes(file: Path) -> int | None:
    """The size on the hub of a weight file of which only the header is here; None for any other file.

    Raises `NotFound` where weights may be wanted.
    """
    if not is_copy(file):
        return None
    listing = listing_of(file.parent)
    if not is_looking():
        raise NotFound(
            f"of {listing.hub_id} only headers are here", f"download it first: model-merging fetch {listing.hub_id}", hub_id=True
        )
    return listing.sizes.get(file.name)
