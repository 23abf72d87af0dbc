"""What a folder holds: a full model, an adapter, or something that cannot be merged as it is, and then what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_server.formats.tensors import read_json
from mcp_server.schemas.inspect import Kind

SAFE = "convert it to safetensors first: load it where you trust it and save_pretrained(..., safe_serialization=True)"
UNQUANTISED = "merge the unquantised model it was made from, and quantise the result"


@dataclass(frozen=True, slots=True)
class FolderKind:
    """The kind of a folder and, when it is no plain model, why and what to do."""

    kind: Kind
    detail: str = ""


def classify(path: Path) -> FolderKind:
    """Look at names only; whether the weights are packed, their headers say."""
    if path.is_file():
        return _file(path)
    names = sorted(entry.name for entry in path.iterdir())
    adapter = "adapter_config.json" in names
    model = any(name in names for name in ("model.safetensors", "model.safetensors.index.json"))
    if adapter and not (model and "config.json" in names):
        return _adapter(names)
    if model and "config.json" in names:
        return FolderKind("full")
    if model:
        return FolderKind("not_a_model", "it has weights but no config.json; download or save the checkpoint again")
    if gguf := _ending(names, ".gguf"):
        return FolderKind("gguf", f"{gguf} is GGUF, a format for inference; {UNQUANTISED}")
    if pickle := _ending(names, ".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        return FolderKind("pickle", f"{pickle} is a pickle, which can run code when it is opened; {SAFE}")
    if shard := _ending(names, ".safetensors"):
        wanted = "model.safetensors or model.safetensors.index.json"
        return FolderKind("not_a_model", f"it has {shard} but no {wanted}: a download that was cut short, or another layout")
    if "config.json" in names:
        return FolderKind("not_a_model", "it has config.json but no weights: the download is not complete")
    found = ", ".join(names[:6]) + (" …" if len(names) > 6 else "") if names else "nothing"
    return FolderKind(
        "not_a_model", f"it holds {found}; a model has config.json and model.safetensors, an adapter adapter_config.json"
    )


def adapter_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "adapter_config.json")


def _file(path: Path) -> FolderKind:
    if path.suffix == ".gguf":
        return FolderKind("gguf", f"it is GGUF, a format for inference; {UNQUANTISED}")
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        return FolderKind("pickle", f"it is a pickle, which can run code when it is opened; {SAFE}")
    if path.suffix == ".safetensors":
        return FolderKind("not_a_model", f"it is a single file; name its folder, {path.parent}")
    return FolderKind("not_a_model", "it is a file; name the folder that holds config.json and the weights")


def _adapter(names: list[str]) -> FolderKind:
    if "adapter_model.safetensors" in names:
        return FolderKind("lora")
    if "adapter_model.bin" in names:
        return FolderKind("pickle", f"adapter_model.bin is a pickle, which can run code when it is opened; {SAFE}")
    return FolderKind("not_a_model", "it has adapter_config.json but no adapter_model.safetensors; save the adapter again")


def _ending(names: list[str], *suffixes: str) -> str | None:
    return next((name for name in names if name.endswith(suffixes)), None)
