"""Fold a LoRA adapter into its base for an engine that needs whole models, through a cache that is keyed by content.

The base's files are copied and the adapted tensors are patched in place, block by block: shapes and dtypes do not change, so
their offsets do not either. Memory is one block whatever the model's size; the arithmetic is float32 with one rounding.

The key is a hash of every byte of base and adapter (remembered per file, see `system.hashes`), so a retrained adapter at the
same path is another entry. A folder appears in the cache by a rename: it is complete or absent, never half.

Not covered: adapters that `engine.adapters` refuses by name (DoRA, other PEFT types); they are merged with PEFT by their owner.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from mcp_server.engine.blocks import split
from mcp_server.engine.codecs import encode
from mcp_server.engine.reader import Reader
from mcp_server.engine.thread_pool import Workspace
from mcp_server.engine.updates import OpenUpdates
from mcp_server.errors import DiskFull, Unsupported
from mcp_server.formats.checkpoint import Checkpoint, open_checkpoint
from mcp_server.formats.identity import TOKENIZER_FILES
from mcp_server.formats.lora import open_adapter
from mcp_server.formats.recipe import KEEPS_TIES
from mcp_server.formats.tensors import ITEM_BYTES, StoredTensor
from mcp_server.formats.updates import Change
from mcp_server.system import paths
from mcp_server.system.files import private_folder, scratch_folder, sync_tree, write_json
from mcp_server.system.hashes import file_sha256

Report = Callable[[int, int], None]
_FORMAT: Final = "folded-1"
_CARRIED: Final = (*TOKENIZER_FILES, "generation_config.json", "config.json", "model.safetensors.index.json")


def folded(base: str, adapter: str, report: Report, *, as_merged: bool = False) -> Path:
    """The folder of `base` with `adapter` folded in, made now or found in the cache. `report(done, total)` counts tensors.

    `as_merged` is that of `open_adapter`.
    """
    checkpoint = open_checkpoint(base)
    if packed := next((tensor.packed for tensor in checkpoint.tensors.values() if tensor.packed is not None), None):
        raise Unsupported(
            f"{base} is quantised ({packed.kind}), and a folded copy keeps the base's own form",
            "use the stream engine, which unpacks it as it reads",
        )
    changes = open_adapter(adapter, checkpoint.tensors, checkpoint.config, as_merged=as_merged)
    if changes.untied or changes.vocabulary is not None:
        raise Unsupported(
            f"{adapter} {'unties the head of its base' if changes.untied else 'resizes the vocabulary'}, and a folded copy keeps "
            "the base's own tensors",
            "use the stream engine, which writes the head and the config that go with it"
            + (f", or set parameters: {{{KEEPS_TIES}: true}} to change both as PEFT's merge does" if changes.untied else ""),
        )
    key = content_key([*checkpoint.headers, *changes.headers, changes.folder / "adapter_config.json"], as_merged=as_merged)
    target = paths.cache_dir() / "folded" / key[:32]
    if target.is_dir():
        report(1, 1)
        return target
    private_folder(target.parent)
    needed = sum(header.file_bytes for header in checkpoint.headers.values())
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise DiskFull(
            f"folding {adapter} into its base needs {needed / 1e9:.1f} GB in {target.parent}, {free / 1e9:.1f} GB are free",
            "free some space or set MODEL_MERGING_HOME; the stream engine needs no folded copies",
        )
    with scratch_folder(target.parent, ".") as partial:
        _write(checkpoint, changes.changes, partial, report)
        write_json(partial / "folded.json", {"base": str(checkpoint.folder), "adapter": str(changes.folder), "key": key})
        sync_tree(partial)
        with contextlib.suppress(OSError):
            partial.rename(target)  # somebody else may have made the same folder meanwhile: then theirs is as good
        if not target.is_dir():
            raise OSError(f"{target} could not be made")
    return target


def _write(checkpoint: Checkpoint, changes: dict[str, Change], partial: Path, report: Report) -> None:
    for name in _CARRIED:
        source = checkpoint.folder / name
        if source.is_file():
            shutil.copyfile(source, partial / name)
    for file in checkpoint.headers:
        shutil.copyfile(file, partial / file.name)
    reader, workspace = Reader(), Workspace()
    try:
        for done, (name, change) in enumerate(changes.items()):
            report(done, len(changes))
            stored = checkpoint.tensors[name]
            with (partial / stored.file.name).open("r+b", buffering=0) as out:
                _patch(stored, change, reader, workspace, out.fileno())
        report(len(changes), len(changes))
    finally:
        reader.close()


def _patch(stored: StoredTensor, change: Change, reader: Reader, workspace: Workspace, out: int) -> None:
    """Replace and update one tensor in the copied file, at its own offset."""
    source = change.replacement or stored
    updates = OpenUpdates(change.updates, source, reader)
    size = ITEM_BYTES[stored.dtype]
    for block in split(stored.shape):
        values = workspace.take("values", block.count)
        reader.values(source, block, workspace, values)
        updates.apply(block, values, workspace)
        raw = workspace.take("encoded", block.count * size, np.uint8)
        encode(values, stored.dtype, raw)
        os.pwrite(out, raw.tobytes(), stored.offset + block.start * size)


def content_key(files: list[Path], *, as_merged: bool = False) -> str:
    """SHA-256 over names and contents, and how they are read."""
    lines = [f"{path.name} {file_sha256(path)}" for path in sorted(files)]
    return hashlib.sha256("\n".join([_FORMAT, *(["ties kept"] if as_merged else []), *lines]).encode()).hexdigest()
