"""An adapter on disk, as far as it can be told without its base: its config and its stored tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_server.formats.checkpoint import locate, not_a
from mcp_server.formats.folder import classify
from mcp_server.formats.safetensors import Header, read_header
from mcp_server.formats.tensors import StoredTensor, read_json, stored_tensors


@dataclass(frozen=True)
class AdapterFolder:
    """What PEFT saved. `formats.lora` matches it to a base."""

    ref: str
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    headers: dict[Path, Header]


def open_adapter_folder(ref: str, relative_to: Path | None = None) -> AdapterFolder:
    """An adapter in safetensors. Raises `NotFound`, `NotAModel` or `Malformed`."""
    folder = locate(ref, relative_to)
    holding = classify(folder)
    if holding.kind != "lora":
        raise not_a("an adapter", ref, folder, holding)
    file = folder / "adapter_model.safetensors"
    header = read_header(file)
    return AdapterFolder(ref, folder, read_json(folder / "adapter_config.json"), stored_tensors(file, header), {file: header})
