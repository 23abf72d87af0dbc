"""From what a user writes to what an engine can open.

A ref is a local folder, a hub id (`owner/name`), or an alias such as `demo:smollm2-135m-instruct`. Resolving never goes to the
network: a hub id becomes its snapshot in the local Hugging Face cache when it is there, and stays a hub id when it is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TypeVar

from mcp_server.errors import BadInput, NotFound, did_you_mean
from mcp_server.system import guard, paths

T = TypeVar("T")
_COMMIT: Final = re.compile(r"^[0-9a-f]{40}$")
_REVISION: Final = re.compile(r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$")
_NAME: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB_ID: Final = re.compile(rf"(?:{_NAME}/)?{_NAME}\Z")
_ADDRESS: Final = re.compile(
    rf"(?:hf://|(?:https?://)?(?:[\w-]+\.)+[a-z]{{2,}}(?::\d+)?/)(?P<id>{_NAME}/{_NAME})(?:\.git|/.*|@.*)?/?\Z"
)
"""Of a repository: what people copy from a browser's address line, in place of its id."""


def demo_aliases() -> dict[str, Path]:
    """The `demo:` aliases and the folders they stand for (which may not be made yet)."""
    return {"demo:smollm2-135m-instruct": paths.demo_base_dir()}


def unmade_demo(path: Path) -> str | None:
    """The `demo:` alias of a folder that is still to be made, else None."""
    return next((alias for alias, folder in demo_aliases().items() if path == folder and not path.exists()), None)


def not_here(ref: str, name: str, revision: str | None, path: Path) -> NotFound:
    """What to raise for a model that is not on this machine, with the command that brings it where there is one."""
    if (alias := unmade_demo(path)) is not None:
        return NotFound(f"{alias} is not made yet", f"make it, offline, in a minute: model-merging fetch {alias}", ref=ref)
    if is_hub_id(name):
        wanted = f"{name}@{revision}" if revision else name
        return NotFound(
            f"{ref} is not a folder here and not in the local Hugging Face cache",
            f"check the path, or download it first: model-merging fetch {wanted}",
            ref=ref,
            hub_id=True,
        )
    if (meant := id_in_address(ref)) is not None:
        what = f"{ref} is an address of a page, not the name of a model"
        return NotFound(what, f"name the model by its id: {meant}", ref=ref)
    return NotFound(f"{path} does not exist", "check the path" + nearby(path), ref=ref)


def id_in_address(ref: str) -> str | None:
    """The hub id in the address of a repository's page; None for everything else, such as a path whose first folder is here."""
    found = _ADDRESS.match(ref)
    if found is None or ("://" not in ref and Path(ref.partition("/")[0]).exists()):
        return None
    return found["id"].removesuffix(".git")


def nearby(path: Path) -> str:
    """What the nearest existing folder holds, to go behind a next step, so that a typo shows."""
    parent = next((p for p in path.parents if p.is_dir()), None)
    if parent is None or parent == Path(parent.anchor):
        return ""
    names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir())[:6]
    return f"; {parent} holds {', '.join(names)}" if names else f"; {parent} holds no folders"


def split_revision(ref: str, relative_to: Path) -> tuple[str, str | None]:
    """`name@revision` as its two parts; a folder whose own name holds an '@' is whole."""
    name, _, revision = ref.partition("@")
    if not revision or (not is_hub_id(name) and Path(anchor_ref(ref, relative_to)).is_dir()):
        return ref, None
    return name, revision


_found: ContextVar[dict[tuple[object, ...], Any] | None] = ContextVar("what references were found to be", default=None)


@contextmanager
def resolved_once() -> Iterator[None]:
    """Look each reference up once in here: for many recipes of the same models, before any of them is opened."""
    token = _found.set({})
    try:
        yield
    finally:
        _found.reset(token)


def once(find: Callable[..., T], *given: object) -> T:
    """`find(*given)`; inside `resolved_once()` what it gave the first time."""
    found = _found.get()
    if found is None:
        return find(*given)
    if (find, given) not in found:
        found[find, given] = find(*given)
    known: T = found[find, given]
    return known


def resolve_ref(ref: str, relative_to: Path, revision: str | None = None) -> str:
    """An absolute folder, or the hub id unchanged when no copy of it (at that revision) is in the local cache.

    A folder wins over a hub id of the same spelling, as in transformers. A ref that looks like a path is made absolute even if
    nothing is there, so that the message of whoever opens it shows the whole path. Raises `BadInput` for an unknown alias and
    `NotAllowed` for a path that the policy of this call or job does not let be read.
    """
    return once(_resolve, ref, relative_to, revision)


def _resolve(ref: str, relative_to: Path, revision: str | None) -> str:
    if ref.startswith("demo:"):
        known = demo_aliases()
        if ref not in known:
            raise BadInput(f"{ref!r} is not an alias that is known.{did_you_mean(ref, known)}", f"known: {', '.join(known)}")
        return str(guard.check_read(known[ref].resolve()))
    anchored = anchor_ref(ref, relative_to)
    if not is_hub_id(anchored):
        return str(guard.check_read(anchored))
    snapshot = cached_snapshot(anchored, revision)
    if snapshot is None:
        return anchored
    guard.check_read(snapshot)
    return str(snapshot)  # under its own name: its files are links into the cache's blobs


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
        if ref.strip() and local.suffix == ".gguf":
            return str(local.parent.resolve() / local.name)  # in a hub cache a link to a file without a suffix
        if ref.strip():
            return str(local.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"{ref[:200]!r} cannot be a path: {error}", "give a folder, or a hub id such as owner/name") from error
    raise BadInput("an empty ref names nothing", "give a folder, or a hub id such as owner/name")


def anchor_whole(ref: str, relative_to: Path | None = None) -> str:
    """The same for what may name an adapter too: FOLDER, BASE+ADAPTER. Starts from the current folder unless told otherwise."""
    start = relative_to or Path.cwd()
    parts = [ref] if (start / ref).exists() else ref.split("+")
    return "+".join(anchor_ref(part, start) for part in parts)


def is_revision(text: str) -> bool:
    """Whether it can name a branch, a tag or a commit, and leads nowhere else."""
    return bool(_REVISION.fullmatch(text)) and ".." not in text


def is_hub_id(ref: str) -> bool:
    """True for `owner/name` (or an old bare `name`) in the hub's alphabet; `./owner/name` and `/owner/name` are paths."""
    return bool(_HUB_ID.match(ref)) and ".." not in ref and "--" not in ref and not ref.endswith(".git")


def hub_id_of(folder: Path) -> str | None:
    """The hub id of a snapshot in a hub cache, …/models--OWNER--NAME/snapshots/COMMIT; None for any other folder."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/")


def cached_snapshot(hub_id: str, revision: str | None = None) -> Path | None:
    """The snapshot of a hub id in the local cache: of the branch, tag or whole commit that is asked for.

    Without a revision, the one `refs/main` names, else the newest with a config.
    """
    folder = paths.huggingface_cache() / f"models--{hub_id.replace('/', '--')}"
    for commit in _commits(folder, revision):
        if _usable(folder / "snapshots" / commit):
            return (folder / "snapshots" / commit).absolute()
    snapshots = folder / "snapshots"
    usable = [p for p in snapshots.iterdir() if _usable(p)] if revision is None and snapshots.is_dir() else []
    return max(usable, key=lambda p: p.stat().st_mtime).absolute() if usable else None


def _commits(folder: Path, revision: str | None) -> Iterator[str]:
    """The commit that a branch or tag names, and the revision itself if it is one."""
    wanted = revision or "main"
    if not is_revision(wanted):
        return  # a recipe must not lead out of the cache
    named = folder / "refs" / wanted
    if named.is_file():
        yield named.read_text(encoding="utf-8").strip()
    if _COMMIT.match(wanted):
        yield wanted


def _usable(snapshot: Path) -> bool:
    named = any((snapshot / name).is_file() for name in ("config.json", "adapter_config.json"))
    return named or (snapshot.is_dir() and any(snapshot.glob("*.gguf")))
