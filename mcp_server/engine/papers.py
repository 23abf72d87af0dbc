"""Everything in the output folder that is not weights: config, tokenizer, card, recipe and provenance."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mcp_server.core.errors import NotFound
from mcp_server.engine import layers
from mcp_server.engine.card import model_card
from mcp_server.engine.checkpoint import locate
from mcp_server.engine.journal import InputFile
from mcp_server.engine.layout import Layout
from mcp_server.engine.plan import MergePlan
from mcp_server.engine.recipe import ModelRef
from mcp_server.engine.request import Report, Request

TOKENIZER_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "added_tokens.json", "merges.txt",
    "vocab.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def write_papers(
    request: Request,
    plan: MergePlan,
    layout: Layout,
    inputs: list[InputFile],
    measured: dict[str, Any],
    report: Report,
) -> list[str]:
    """Write and sync them all. Returns warnings: what a user would expect and could not be copied."""
    folder, recipe = request.folder, plan.recipe
    warnings = []
    donor = plan.sources[recipe.donor].checkpoint.folder
    write_json(folder / "config.json", output_config(plan))
    if (index := layout.index(plan.tensors)) is not None:
        write_json(folder / "model.safetensors.index.json", index)
    else:
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    copy_files(donor, folder, ("generation_config.json",))
    tokenizer = _tokenizer_folder(plan, donor)
    if not copy_files(tokenizer, folder, TOKENIZER_FILES):
        warnings.append(f"{tokenizer} has no tokenizer files, so the output has none; copy them from a source")
    if recipe.chat_template:
        write_durably(folder / "chat_template.jinja", recipe.chat_template)
    write_durably(folder / "mergekit_config.yml", recipe.text)
    name = request.name or folder.name
    write_durably(folder / "README.md", model_card(name, plan, measured))
    write_json(folder / "merge_provenance.json", provenance(request, plan, inputs, measured, report))
    sync_folder(folder)
    return warnings


def output_config(plan: MergePlan) -> dict[str, Any]:
    """The donor's config with dtype and number of layers corrected, and the head marked untied when it is."""
    config = dict(plan.sources[plan.recipe.donor].checkpoint.config)
    dtypes = [tensor.dtype for tensor in plan.tensors]
    config["dtype" if "dtype" in config else "torch_dtype"] = max(set(dtypes), key=dtypes.count)
    if plan.layer_count is not None and (key := layers.layer_key(config)):
        config[key] = plan.layer_count
        if isinstance(config.get("layer_types"), list):
            config["layer_types"] = _layer_types(plan)
    stores_head = any(tensor.name in layers.HEADS for tensor in plan.tensors)
    untied = any(source.checkpoint.config.get("tie_word_embeddings") is False for source in plan.sources.values())
    if stores_head and untied and config.get("tie_word_embeddings"):
        config["tie_word_embeddings"] = False
    return config


def _layer_types(plan: MergePlan) -> list[Any]:
    """Layer kinds (sliding or full attention, …) travel with the layers that are stacked."""
    kinds: list[Any] = []
    for part in plan.recipe.slices:
        source = part.sources[0]
        listed = plan.sources[source.ref].checkpoint.config.get("layer_types") or []
        first, last = source.layers or (0, len(listed))
        kinds += listed[first:last]
    return kinds


def _tokenizer_folder(plan: MergePlan, donor: Path) -> Path:
    named = plan.recipe.tokenizer_source or plan.recipe.tokenizer.get("source")
    if not named or named == "base":
        return donor
    try:
        return locate(ModelRef.parse(named).model)
    except NotFound as missing:
        raise NotFound(f"the tokenizer source: {missing.message}", missing.next_step) from missing


def copy_files(source: Path, target: Path, names: tuple[str, ...]) -> list[str]:
    copied = [name for name in names if (source / name).is_file()]
    for name in copied:
        shutil.copyfile(source / name, target / name)
        with (target / name).open("rb") as file:
            os.fsync(file.fileno())
    return copied


def provenance(
    request: Request,
    plan: MergePlan,
    inputs: list[InputFile],
    measured: dict[str, Any],
    report: Report,
) -> dict[str, Any]:
    files = []
    for number, entry in enumerate(inputs):
        record: dict[str, Any] = {
            "path": entry.path,
            "bytes": entry.bytes,
            "mtime_ns": entry.mtime_ns,
            "header_sha256": entry.header_sha256,
        }
        if hub := hub_revision(Path(entry.path)):
            record["hub"] = hub
        if request.hashing == "full":
            report("hash", number, len(inputs), "files")
            with Path(entry.path).open("rb") as file:
                record["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        files.append(record)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": plan.recipe.text,
        "seed": measured["seed"],
        "engine": {"name": "stream", "arithmetic": "float32, float64 sums, one rounding"},
        "versions": {name: version(name) for name in ("numpy", "numba", "safetensors")} | {"python": platform.python_version()},
        "sources": [str(ref) for ref in plan.recipe.refs],
        "inputs": files,
        "evidence": {key: measured[key] for key in ("landed", "rounding_loss", "nonfinite", "relative_error") if key in measured},
        "timings": {"merge_seconds": round(measured["wall_seconds"], 3), "resumed": measured["resumed"]},
        "warnings": measured["warnings"],
    }


def hub_revision(path: Path) -> dict[str, str] | None:
    """Repository and commit of a file in the hub cache: …/models--ORG--NAME/snapshots/COMMIT/FILE."""
    parts = path.parts
    for i, part in enumerate(parts[:-2]):
        if part.startswith("models--") and parts[i + 1] == "snapshots":
            return {"repository": part.removeprefix("models--").replace("--", "/"), "revision": parts[i + 2]}
    return None


def write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    write_durably(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
