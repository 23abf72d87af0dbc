"""A model of a hub judged before a byte of its weights is downloaded: JSON files and headers by range request, kept in the store.

An 8 B model costs nine requests and 150 kB. Tokenizer files, which are megabytes, are fetched only when ids must be
compared; equal files are told by the hashes that the hub lists. Of GGUF the first bytes are read: what describes the model, not
the vocabulary behind it. Copies are kept by commit, so the second look asks for the commit alone.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server.errors import MergingError, NotFound, RunFailed, from_dict
from mcp_server.formats.hub import copies, ranges
from mcp_server.formats.hub.copies import Listing
from mcp_server.formats.hub.listing import COMMIT, Holding, chosen_gguf, copied_gguf, holding_of
from mcp_server.formats.hub.ranges import read_range, read_ranges
from mcp_server.formats.hub.refusals import explained
from mcp_server.formats.refs import not_here
from mcp_server.formats.safetensors import MAX_HEADER_BYTES
from mcp_server.system import guard

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

JSON_FILES: Final = (
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json", "chat_template.jinja",
    "model.safetensors.index.json",
)  # fmt: skip
CARDS: Final = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
"""Only their heads are read."""
CARD_BYTES: Final = 65_536
JSON_BYTES: Final = 16_000_000
TOKENIZER_BYTES: Final = 64_000_000
FIRST_BYTES: Final = 32_768
"""Of a weight file, in the first request: the header of a shard of an 8 B model is shorter."""
MOST_PARTS: Final = 64
"""Small parts of weight files that one call of `parts_of` may ask for."""
KEPT: Final = 200
"""Copies in the store; beyond that the oldest are removed."""
_PLAIN: Final = re.compile(r"[\w][\w.+-]*(/[\w][\w.+-]*)*\Z")
"""Names that lead nowhere else; others are nothing that a model is read from."""
KNOWN_S: Final = 300.0
REFUSED_S: Final = 20.0


@dataclass
class _Known:
    """What this process has asked: answers hold for minutes, refusals and silence for seconds (somebody may log in meanwhile)."""

    found: dict[tuple[str, str, str], tuple[float, Path]] = field(default_factory=dict)
    refused: dict[tuple[str, str, str], tuple[float, dict[str, Any]]] = field(default_factory=dict)
    silent: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Endpoint → why it did not answer: the next ids need not wait for it again."""


_known = _Known()


def header_copy(hub_id: str, revision: str | None = None) -> Path | None:
    """The folder with the headers of a hub id; None where no hub is asked: outside `looking()`, offline, or a name without owner.

    Raises `NotFound`, `NotAllowed` or `NotAModel` as the hub or its listing says, with `on_hub` in the details; a hub that does
    not answer is a `NotFound` whose details hold `hub_id`, as of any model that is not here: unknown, not wrong.
    """
    if not copies.is_looking() or "/" not in hub_id or _is_offline():
        return None
    endpoint = ranges.endpoint()
    key, now = (endpoint, hub_id, revision or ""), time.monotonic()
    if (silence := _known.silent.get(endpoint)) is not None and now - silence[0] < REFUSED_S:
        raise _unknown(hub_id, revision, silence[1])
    if (refusal := _known.refused.get(key)) is not None and now - refusal[0] < REFUSED_S:
        raise from_dict(refusal[1])
    if (known := _known.found.get(key)) is not None and now - known[0] < KNOWN_S and known[1].is_dir():
        return known[1]
    try:
        with guard.own_files():
            folder = _copied(hub_id, revision)
    except RunFailed as failed:
        if failed.details.get("silent"):
            _known.silent[endpoint] = (time.monotonic(), failed.message)
        raise _unknown(hub_id, revision, failed.message) from failed
    except MergingError as refused:
        refused.details.setdefault("on_hub", True)
        if isinstance(refused, NotFound) and not refused.details.get("hub_id"):
            refused = NotFound(f"{hub_id} is not a folder here, and {refused.message}", refused.next_step, **refused.details)
        _known.refused[key] = (time.monotonic(), refused.as_dict())
        raise refused from None
    _known.found[key] = (time.monotonic(), folder)
    return folder


def _unknown(hub_id: str, revision: str | None, why: str) -> NotFound:
    absent = not_here(hub_id, hub_id, revision, Path(hub_id))
    return NotFound(f"{absent.message}, and {why}", absent.next_step, **absent.details)


def bring(folder: Path, names: Iterable[str]) -> bool:
    """Fetch further small files of a copy, where the repository has them. False when one could not be had."""
    listing = copies.listing_of(folder)
    wanted = [name for name in names if name in listing.sizes and not (folder / name).is_file()]
    if any(listing.sizes[name] > TOKENIZER_BYTES for name in wanted):
        return False
    try:
        with guard.own_files(), explained(listing.hub_id, listing.commit):
            for name in wanted:
                _write(folder, name, read_range(listing, name, 0, listing.sizes[name]))
    except MergingError:
        return False
    return True


def parts_of(folder: Path, wanted: list[tuple[str, int, int]]) -> list[bytes] | None:
    """Small parts of a copy's weight files, (file, begin, count), fetched where they are not here yet.

    None where there are too many, where no hub is asked, and where one could not be had.
    """
    listing = copies.listing_of(folder)
    places = {one: folder / f"{one[0]}.{one[1]}-{one[2]}" for one in wanted}
    missing = [one for one, place in places.items() if not place.is_file()]
    if len(missing) > MOST_PARTS or (missing and _is_offline()):
        return None
    try:
        with guard.own_files(), explained(listing.hub_id, listing.commit):
            for one, data in zip(missing, read_ranges(listing, missing), strict=True):
                _write(folder, places[one].name, data)
    except MergingError:
        return None
    return [places[one].read_bytes() for one in wanted]


def _is_offline() -> bool:
    from mcp_server.system import settings  # pydantic-settings costs a worker a fifth of its start

    return settings.load().is_offline


def _copied(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi

    with explained(hub_id, revision or "main"):
        info = HfApi(endpoint=ranges.endpoint()).model_info(
            hub_id, revision=revision, files_metadata=True, timeout=ranges.TIMEOUT_S
        )
        listing = _listing(hub_id, info)
        holding = holding_of(hub_id, list(listing.sizes))
        folder = copies.root() / hub_id.replace("/", "--") / listing.commit
        if not folder.is_dir():
            _make(folder, listing, holding)
    return folder


def _listing(hub_id: str, info: ModelInfo) -> Listing:
    siblings = info.siblings or []
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise RunFailed(f"the hub names {commit[:80]!r} as the commit of {hub_id}, which is none", "check HF_ENDPOINT")
    blobs = {s.rfilename: str(s.lfs.sha256 if s.lfs else s.blob_id) for s in siblings}
    return Listing(hub_id, commit, {s.rfilename: s.size or 0 for s in siblings if _PLAIN.match(s.rfilename)}, blobs)


def _make(folder: Path, listing: Listing, holding: Holding) -> None:
    """All files into a new folder, which is renamed into place: a copy is whole or not there."""
    _make_room()
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    part.mkdir(parents=True)
    try:
        small = [(n, JSON_BYTES) for n in JSON_FILES] + [(n, CARD_BYTES) for n in CARDS]
        texts = [(n, 0, min(most, listing.sizes[n])) for n, most in small if n in listing.sizes]
        for (name, _, _), data in zip(texts, read_ranges(listing, texts), strict=True):
            _write(part, name, data)
        if holding == "gguf":
            first = chosen_gguf(listing.hub_id, list(listing.sizes), None)[0]
            _write(part, copied_gguf(first), read_range(listing, first, 0, min(FIRST_BYTES, listing.sizes[first])))
        with ThreadPoolExecutor(ranges.REQUESTS) as pool:
            list(pool.map(lambda name: _write(part, name, _header(listing, name)), _weights(part, listing)))
        copies.keep_listing(part, listing)
        with suppress(OSError):  # another process was faster
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _make_room() -> None:
    kept = sorted(copies.root().glob("*/*"), key=lambda path: path.stat().st_mtime)
    for old in kept[: max(0, len(kept) - KEPT)]:
        shutil.rmtree(old, ignore_errors=True)


def _weights(folder: Path, listing: Listing) -> list[str]:
    """The weight files that a checkpoint of this folder would read."""
    index = folder / "model.safetensors.index.json"
    named: list[str] = []
    if index.is_file():
        with suppress(ValueError, AttributeError, TypeError):  # whoever opens the copy says what is wrong with its index
            named = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    everything = [*named, "model.safetensors", "adapter_model.safetensors"]
    return [name for name in dict.fromkeys(everything) if name in listing.sizes and "/" not in name]


def _header(listing: Listing, name: str) -> bytes:
    """The first bytes of a safetensors file, up to the end of its header."""
    size = listing.sizes[name]
    first = read_range(listing, name, 0, min(FIRST_BYTES, size))
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
        return first  # whoever opens the copy says what is wrong with it
    return first[: 8 + length] + read_range(listing, name, len(first), max(0, 8 + length - len(first)))


def _write(folder: Path, name: str, data: bytes) -> None:
    """Appears whole or not at all: another process may be reading this folder."""
    part = folder / f".{name}.{secrets.token_hex(4)}"
    part.write_bytes(data)
    part.replace(folder / name)
