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
from mcp_server.engine.output_config import output_config
from mcp_server.engine.plan import MergePlan
from mcp_server.engine.request import Request
from mcp_server.engine.vocabulary import Vocabulary
from mcp_server.errors import NotFound
from mcp_server.formats import tensor_names
from mcp_server.formats.chat_template import AUTO, is_name, most_common
from mcp_server.formats.chat_template import put as put_template
from mcp_server.formats.checkpoint import locate
from mcp_server.formats.companions import (
    GENERATION,
    IDS,
    TurnSettings,
    companions,
    is_tokenizer_file,
    keeps_token_ids,
    tokenizer_companions,
)
from mcp_server.formats.digests import digests_of
from mcp_server.formats.folder import folder_of
from mcp_server.formats.lineage import source_records
from mcp_server.formats.provenance import Provenance, identify, write_model_card, write_provenance
from mcp_server.formats.recipe import parse_ref, read_recipe
from mcp_server.formats.tensors import read_json
from mcp_server.system.guard import open_read


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
    vocabulary = plan.vocabulary
    speaker, said = (vocabulary.folder, []) if vocabulary and vocabulary.folder != donor else _speaker(plan, donor)
    warnings += said
    config = output_config(plan, own_head=_has_own_head(plan, layout, folder))
    if speaker != donor:
        spoken = TurnSettings.of(speaker).settings
        config |= {key: spoken[f"config {key}"] for key in IDS if f"config {key}" in spoken}
    write_json(folder / "config.json", config)
    if (index := layout.index(plan.tensors)) is not None:
        write_json(folder / "model.safetensors.index.json", index)
    else:
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    tokenizer = vocabulary.folder if vocabulary else _tokenizer_folder(plan, speaker)
    files = {name: donor for name in companions(donor) if not is_tokenizer_file(name)}
    files |= dict.fromkeys(tokenizer_companions(tokenizer), tokenizer)
    if (speaker / GENERATION).is_file():
        files[GENERATION] = speaker
    copy_files(files, folder)
    if vocabulary and vocabulary.added:
        _add_tokens(folder, vocabulary)
    if not any(map(is_tokenizer_file, files)):
        warnings.append(f"{tokenizer} has no tokenizer files, so the output has none; copy them from a source")
    if (template := _template(request, plan)) is not None:
        put_template(folder, template)
    write_record(request, plan, measured | {"warnings": [*measured["warnings"], *warnings]})
    sync_folder(folder)
    return warnings


def _template(request: Request, plan: MergePlan) -> str | None:
    """The text of the chat template that the recipe asks for, as mergekit chooses it. None: what was copied stays."""
    wanted = plan.recipe.chat_template
    if not wanted or not is_name(wanted):
        return wanted or None
    if wanted != AUTO:
        return request.chat_template
    refs = [plan.recipe.donor, *(ref for ref in plan.recipe.references() if ref != plan.recipe.donor)]
    return most_common(plan.sources[ref].checkpoint.folder for ref in refs if ref in plan.sources)


def _speaker(plan: MergePlan, donor: Path) -> tuple[Path, list[str]]:
    """The folder whose end-of-turn settings the output takes, and what is said about it.

    The base's, unless all fine-tunes agree on others (and number the base's tokens alike): then theirs. A disagreement is named.
    """
    recipe = plan.recipe
    own = TurnSettings.of(donor)
    others: dict[str, tuple[Path, list[str]]] = {}
    for ref, source in plan.sources.items():
        if ref == recipe.donor:
            continue
        folder = source.checkpoint.folder
        if source.adapter and (source.adapter.folder / "tokenizer_config.json").is_file():
            folder = source.adapter.folder
        others[str(ref)] = (folder, TurnSettings.of(folder).differences(own))
    if not any(differences for _, differences in others.values()):
        return donor, []
    folders = [folder for folder, _ in others.values()]
    agree = len({json.dumps(TurnSettings.of(folder).settings, sort_keys=True, default=str) for folder in folders}) == 1
    if recipe.base and not recipe.tokenizer_from and agree and keeps_token_ids(folders[0], donor):
        named, (folder, differences) = next(iter(others.items()))
        return folder, [f"end of turn and chat template come from {named}: {', '.join(differences)} (in brackets: the base)"]
    return donor, [
        f"{named} sets {', '.join(differences)} (in brackets: the output, like {recipe.donor}), so the output may end its turns "
        "otherwise"
        for named, (_, differences) in others.items()
        if differences
    ]


def _has_own_head(plan: MergePlan, layout: Layout, folder: Path) -> bool:
    """Whether a stored head differs from the stored embedding although the donor's config ties them: what is stored decides."""
    donor = plan.sources[plan.recipe.donor]
    numbers = {tensor.name: number for number, tensor in enumerate(plan.tensors)}
    heads = [name for name in numbers if tensor_names.is_head(name)]
    if donor.tied is False or not heads or donor.embedding not in numbers:
        return False
    places = [layout.places[numbers[name]] for name in (heads[0], donor.embedding)]
    files = [folder / layout.shards[place.shard].file for place in places]
    return not same_bytes(*((file, place.offset, place.nbytes) for file, place in zip(files, places, strict=True)))


def same_bytes(one: tuple[Path, int, int], other: tuple[Path, int, int]) -> bool:
    """Whether two stretches of files, (path, offset, length), are equal; read in pieces, and only up to the first difference."""
    if one[2] != other[2]:
        return False
    with open_read(one[0]) as first, open_read(other[0]) as second:
        first.seek(one[1])
        second.seek(other[1])
        left = one[2]
        while left:
            step = min(left, 1 << 20)
            if first.read(step) != second.read(step):
                return False
            left -= step
    return True


def _tokenizer_folder(plan: MergePlan, speaker: Path) -> Path:
    named = plan.recipe.tokenizer_from
    if not named or named in ("base", "union"):
        return plan.sources[plan.recipe.donor].checkpoint.folder if named else speaker
    try:
        return folder_of(locate(parse_ref(named).base_ref))
    except NotFound as missing:
        raise NotFound(f"the tokenizer source: {missing.message}", missing.next_step) from missing


def _add_tokens(folder: Path, vocabulary: Vocabulary) -> None:
    """Add tokens to the tokenizer files of the output, as transformers' add_tokens would."""
    data = read_json(folder / "tokenizer.json")
    data["added_tokens"] = [*(data.get("added_tokens") or []), *vocabulary.added]
    write_json(folder / "tokenizer.json", data)
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and isinstance(table := (data := read_json(settings)).get("added_tokens_decoder"), dict):
        table |= {str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in vocabulary.added}
        write_json(settings, data)
    older = folder / "added_tokens.json"
    if older.is_file():
        write_json(older, read_json(older) | {entry["content"]: entry["id"] for entry in vocabulary.added})


def copy_files(files: dict[str, Path], target: Path) -> None:
    """Copy and sync files: name (which may lie in a folder) → the folder that it is in."""
    for name, source in files.items():
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
        with (target / name).open("rb") as file:
            os.fsync(file.fileno())


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
            **({"output_format": request.output_format} if request.output_format else {}),
            **({"space": request.space} if request.space != "weights" else {}),
        },
        seed=measured["seed"],
        sources=sources,
        output=identify(request.folder, request.hashing),
        digests=digests_of(request.folder, measured.get("digests")),
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
