"""Everything in the output folder that is not weights: config, tokenizer, card, recipe and provenance."""

from __future__ import annotations

import json
import os
import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mcp_server.engine.layout import Layout
from mcp_server.engine.plan import MergePlan
from mcp_server.engine.request import Request
from mcp_server.errors import NotFound
from mcp_server.formats import tensor_names as layers
from mcp_server.formats.checkpoint import locate
from mcp_server.formats.identity import TOKENIZER_FILES
from mcp_server.formats.lineage import source_records
from mcp_server.formats.provenance import Provenance, identify, write_model_card, write_provenance
from mcp_server.formats.quantised import without_quantisation
from mcp_server.formats.recipe import parse_ref, read_recipe


def write_metadata(
    request: Request,
    plan: MergePlan,
    layout: Layout,
    measured: dict[str, Any],
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
    write_record(request, plan, measured | {"warnings": [*measured["warnings"], *warnings]})
    sync_folder(folder)
    return warnings


def output_config(plan: MergePlan) -> dict[str, Any]:
    """The donor's config with dtype and number of layers corrected, and the head marked untied when it is."""
    config = without_quantisation(plan.sources[plan.recipe.donor].checkpoint.config)
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
    for group in plan.recipe.groups:
        source = group.sources[0]
        listed = plan.sources[source.model].checkpoint.config.get("layer_types") or []
        first, last = source.layer_range or (0, len(listed))
        kinds += listed[first:last]
    return kinds


def _tokenizer_folder(plan: MergePlan, donor: Path) -> Path:
    named = plan.recipe.tokenizer_source
    if not named or named == "base":
        return donor
    try:
        return locate(parse_ref(named).base_ref)
    except NotFound as missing:
        raise NotFound(f"the tokenizer source: {missing.message}", missing.next_step) from missing


def copy_files(source: Path, target: Path, names: tuple[str, ...]) -> list[str]:
    copied = [name for name in names if (source / name).is_file()]
    for name in copied:
        shutil.copyfile(source / name, target / name)
        with (target / name).open("rb") as file:
            os.fsync(file.fileno())
    return copied


def write_record(request: Request, plan: MergePlan, measured: dict[str, Any], *, library: str = "transformers") -> None:
    """Provenance, recipe and model card. The weights and configs are on disk already: they are identified as they are."""
    recipe = read_recipe(plan.recipe.text)
    sources = source_records(recipe, request.hashing)
    names = {source.ref: source.name for source in sources}
    record = Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        job_id=request.job_id,
        product=f"model-merging {version('model-merging')}",
        engine="stream",
        engine_version=f"model-merging {version('model-merging')}",
        method=plan.recipe.method,
        recipe=plan.recipe.text,
        settings={
            "arithmetic": "float32, float64 sums, one rounding",
            "shard_size": request.shard_bytes,
            "threads": request.threads,
        },
        seed=measured["seed"],
        sources=sources,
        output=identify(request.folder, request.hashing),
        landed={names.get(ref, ref): share for ref, share in measured["landed"].items()},
        rounding_loss={names.get(ref, ref): share for ref, share in measured["rounding_loss"].items()},
        nonfinite={names.get(ref, ref): count for ref, count in measured["nonfinite"].items()},
        relative_error=measured.get("relative_error"),
        versions={name: version(name) for name in ("numpy", "numba", "safetensors")} | {"python": platform.python_version()},
        wall_seconds=round(measured["wall_seconds"], 3),
        resumed=measured["resumed"],
        warnings=measured["warnings"],
    )
    write_provenance(request.folder, record)
    write_model_card(request.folder, record, request.name or request.folder.name, library=library)


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
