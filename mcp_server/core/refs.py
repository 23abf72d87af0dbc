"""From what a user writes to what an engine can open.

A ref is a local folder, a hub id (`owner/name`), or an alias such as `demo:smollm2-135m-instruct`. Resolving never goes to the
network: a hub id becomes its snapshot in the local Hugging Face cache when it is there, and stays a hub id when it is not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mcp_server.core import paths
from mcp_server.core.errors import BadInput, did_you_mean

_HUB_ID: Final = re.compile(r"^((?![.-])[A-Za-z0-9_.-]{1,96}/)?(?![.-])[A-Za-z0-9_.-]{1,96}$")


def demo_aliases() -> dict[str, Path]:
    """The `demo:` aliases and the folders they stand for (which may not be made yet)."""
    return {"demo:smollm2-135m-instruct": paths.demo_base_dir()}


def resolve_ref(ref: str, relative_to: Path) -> str:
    """An absolute folder, or the hub id unchanged when no copy of it is in the local cache.

    A folder wins over a hub id of the same spelling, as in transformers. A ref that looks like a path is made absolute even if
    nothing is there, so that the message of whoever opens it shows the whole path. Raises `BadInput` for an unknown alias.
    """
    if ref.startswith("demo:"):
        known = demo_aliases()
        if ref not in known:
            raise BadInput(f"{ref!r} is not an alias that is known.{did_you_mean(ref, known)}", f"known: {', '.join(known)}")
        return str(known[ref].resolve())
    anchored = anchor_ref(ref, relative_to)
    if not is_hub_id(anchored):
        return anchored
    return str(snapshot) if (snapshot := cached_snapshot(anchored)) else anchored


def anchor_ref(ref: str, relative_to: Path) -> str:
    """The ref made independent of the current folder: paths absolute, aliases and hub ids as they are.

    Raises `BadInput` for text that cannot be a path (empty, NUL, lone surrogates, an unknown `~user`, too long).
    """
    if ref.startswith("demo:"):
        return ref
    try:
        path = Path(ref).expanduser()
        local = path if path.is_absolute() else relative_to / path
        there = local.exists()
        if is_hub_id(ref) and not there:
            return ref
        if ref.strip():
            return str(local.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"{ref[:200]!r} cannot be a path: {error}", "give a folder, or a hub id such as owner/name") from error
    raise BadInput("an empty ref names nothing", "give a folder, or a hub id such as owner/name")


def is_hub_id(ref: str) -> bool:
    """True for `owner/name` (or an old bare `name`) in the hub's alphabet; `./owner/name` and `/owner/name` are paths."""
    return bool(_HUB_ID.match(ref)) and ".." not in ref and "--" not in ref


def cached_snapshot(hub_id: str) -> Path | None:
    """The newest usable snapshot of a hub id in the local cache: the one `refs/main` names, else the latest with a config."""
    folder = paths.huggingface_cache() / f"models--{hub_id.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file():
        named = folder / "snapshots" / main.read_text(encoding="utf-8").strip()
        if _usable(named):
            return named.absolute()
    snapshots = folder / "snapshots"
    usable = [p for p in snapshots.iterdir() if _usable(p)] if snapshots.is_dir() else []
    return max(usable, key=lambda p: p.stat().st_mtime).absolute() if usable else None


def _usable(snapshot: Path) -> bool:
    return any((snapshot / name).is_file() for name in ("config.json", "adapter_config.json"))
