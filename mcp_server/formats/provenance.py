"""Where a merged model comes from: the record and the model card that every output folder carries.

`merge_provenance.json` holds what is needed to repeat the merge and to notice that a source has changed since: the recipe, the
engine and its settings, and an identity of every source. `README.md` is the model card for people and hubs (lineage, licences,
recipe). Both engines write them through this module, so the record has one shape.

An identity by `headers` hashes each safetensors header with the file's size, and the configs: it costs milliseconds and changes
with shapes, names and dtypes, but not when weights are retrained in place. `full` hashes every byte.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import Field, ValidationError

from mcp_server.errors import Malformed, MergingError, NotAModel, NotFound
from mcp_server.formats.companions import CARD_FILE, PROVENANCE_FILE, RECIPE_FILE
from mcp_server.formats.digests import Digests
from mcp_server.formats.folder import folder_of
from mcp_server.formats.gguf import gguf_files, read_gguf
from mcp_server.formats.identity import TOKENIZER_FILES
from mcp_server.formats.licence import known_licences
from mcp_server.formats.refs import hub_id_of, is_hub_id
from mcp_server.formats.safetensors import read_header
from mcp_server.formats.tensors import read_json
from mcp_server.schemas.base import EngineId, Frozen
from mcp_server.schemas.faults import first_fault
from mcp_server.system.files import write_json, write_text
from mcp_server.system.hashes import sha256_of
from mcp_server.system.outputs import RECORD
from mcp_server.system.plain_text import markdown_code, markdown_inline
from mcp_server.system.yaml_io import read_text

_CONFIGS: Final = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json")
_LEFT_BEHIND: Final = frozenset(
    {
        *TOKENIZER_FILES, "config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json",
        "adapter_model.safetensors.index.json", "preprocessor_config.json", "processor_config.json",
        "video_preprocessor_config.json",
        PROVENANCE_FILE, RECIPE_FILE, CARD_FILE, "plan.yaml",
        "evaluation.json", "evaluations.jsonl", "evaluation.md", "replies.json", "verification.json", "comparison.json",
        "estimate.json", "report.html", "report.md", RECORD, ".gitattributes", ".DS_Store",
    }
)  # fmt: skip
"""What a merge, its evidence and the places where it is published leave in its folder, beside weights."""


class FileIdentity(Frozen):
    name: str
    bytes: int
    sha256: str = Field(description="of the header and the size, or of the whole file, as `hash` says")


class Identity(Frozen):
    """What a source was when it was read."""

    hash: Literal["headers", "full"]
    sha256: str = Field(description="over the files' identities, in order of name")
    files: list[FileIdentity]


class SourceRecord(Frozen):
    name: str = Field(description="short name for people")
    ref: str = Field(description="as the recipe names it")
    role: Literal["base", "model", "adapter"]
    identity: Identity | None = Field(default=None, description="null: not on this machine when the record was written")
    licence: str | None = None
    base: str | None = Field(default=None, description="for an adapter: the base that it was folded into")
    revision: str | None = Field(default=None, description="commit, when it came from the local hub cache")
    modified: dict[str, int] = Field(default_factory=dict, description="weight file → modification time, ns since 1970")


class Provenance(Frozen):
    schema_version: Literal[1] = 1
    created: str = Field(description="UTC, ISO 8601")
    job_id: str
    product: str = Field(examples=["model-merging 0.1.0"])
    engine: EngineId
    engine_version: str = Field(examples=["mergekit 0.1.5"])
    method: str
    recipe: str = Field(description="the text that was run")
    settings: dict[str, Any] = Field(default_factory=dict, description="dtype, shard size, threads, …")
    seed: int | None = None
    sources: list[SourceRecord]
    output: Identity | None = None
    digests: Digests | None = Field(default=None, description="null: the engine that wrote the weights made none")
    landed: dict[str, float | None] = Field(default_factory=dict)
    rounding_loss: dict[str, float | None] = Field(default_factory=dict)
    nonfinite: dict[str, int] | None = Field(default=None, description="source or 'output' → count, where the engine counted")
    relative_error: float | None = Field(default=None, description="of an adapter made by truncated SVD, Frobenius norm")
    versions: dict[str, str] = Field(default_factory=dict, description="library → version")
    wall_seconds: float | None = None
    resumed: bool = False
    warnings: list[str] = Field(default_factory=list)


def identity(path: str | Path, hash: Literal["headers", "full"] = "headers") -> dict[str, Any]:
    """An `Identity` of the checkpoint or adapter in folder `path`, dumped. Raises `NotFound`, `NotAModel` or `Malformed`."""
    return identify(Path(path), hash).model_dump(mode="json")


def identify(folder: Path, hash: Literal["headers", "full"] = "headers") -> Identity:
    weights = weight_files(folder)
    if not folder.is_dir() and not weights:
        raise NotFound(f"{folder} is not a folder", "name the folder that holds the checkpoint")
    if not weights:
        raise NotAModel(f"{folder} holds no .safetensors file", "convert the checkpoint to safetensors")
    folder = folder_of(folder)
    files = [_file(path, hash) for path in weights]
    files += [_file(folder / name, "full") for name in _CONFIGS if (folder / name).is_file()]
    files.sort(key=lambda f: f.name)
    digest = hashlib.sha256("\n".join(f"{f.name} {f.bytes} {f.sha256}" for f in files).encode()).hexdigest()
    return Identity(hash=hash, sha256=digest, files=files)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a folder; of a GGUF file, or a folder that holds nothing else, the files of that model."""
    return (sorted(path.glob("*.safetensors")) if path.is_dir() else []) or gguf_files(path)


def _file(path: Path, hash: Literal["headers", "full"]) -> FileIdentity:
    if hash == "headers":
        header = read_gguf(path).header if path.suffix == ".gguf" else read_header(path)
        sha256 = hashlib.sha256(f"{header.sha256} {header.file_bytes}".encode()).hexdigest()
        return FileIdentity(name=path.name, bytes=header.file_bytes, sha256=sha256)
    return FileIdentity(name=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))


def write_provenance(folder: Path, provenance: Provenance) -> Path:
    """Write `merge_provenance.json`, and the recipe as `mergekit_config.yml` beside it."""
    write_text(folder / RECIPE_FILE, provenance.recipe)
    path = folder / PROVENANCE_FILE
    write_json(path, provenance.model_dump(mode="json"))
    return path


def read_provenance(folder: Path) -> Provenance | None:
    """The record in an output folder, or None when there is none (a folder that this product did not write).

    Raises `Malformed` for a file that is there and is no such record.
    """
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        return None
    try:
        return Provenance.model_validate(read_json(path))
    except ValidationError as error:
        raise Malformed(
            f"{path} is not a record of a merge: {first_fault(error, Provenance)}", "restore it, or remove it"
        ) from error


SAMPLED_BYTES: Final = 1 << 28


def not_ours(folder: Path) -> str | None:
    """Why a folder is not a merge of ours and nothing else, or None when it is: only that is ever removed for a new one.

    Its record has to name it as ours, and everything in it has to be a file that a merge or its evidence leaves there, or one
    that the merge took over from a source and that is as it was written.
    """
    try:
        record = read_provenance(folder)
    except MergingError:
        record = None
    if record is None:
        return f"holds no {PROVENANCE_FILE} of ours (a merge of this tool has one)"
    known = _LEFT_BEHIND | {file.name for file in (record.output.files if record.output else ())}
    taken_over = record.digests.files if record.digests else {}
    for entry in sorted(folder.iterdir()):
        weights = entry.suffix == ".safetensors" and entry.is_file()
        if weights or (entry.name in known and not entry.is_dir()):
            continue
        for file in _files_in(entry):
            name = file.relative_to(folder).as_posix()
            if not file.is_file() or taken_over.get(name) != sha256_of(file):
                return f"holds {name!r}, which is not part of a merge"
    if (other := _other_weights(folder, record)) is not None:
        return f"holds {other}, whose weights are not those that the merge wrote"
    return None


def _other_weights(folder: Path, record: Provenance) -> str | None:
    """A weight file that is not as the record says: a fine-tune that was saved over the merge it began with, for instance.

    Headers are compared whole; of the tensors a sample of `SAMPLED_BYTES`, spread over the model.
    """
    recorded = {file.name: file for file in record.output.files} if record.output else {}
    digests = record.digests.tensors if record.digests else {}
    left = SAMPLED_BYTES
    for path in sorted(folder.glob("*.safetensors")) if recorded else []:
        try:
            known, found, header = recorded.get(path.name), _file(path, "headers"), read_header(path)
        except MergingError:
            return path.name
        if known is None or known.bytes != found.bytes or (record.output and record.output.hash == "headers" and known != found):
            return path.name
        for name in sorted(header.tensors, key=lambda name: hashlib.sha256(name.encode()).digest()):
            tensor, digest = header.tensors[name], digests.get(name)
            if digest is not None and tensor.nbytes <= left:
                left -= tensor.nbytes
                if not digest.matches(path, header.data_start + tensor.begin, tensor.nbytes):
                    return path.name
    return None


def _files_in(entry: Path) -> list[Path]:
    """The entry itself, or what the folder of a sentence encoder's module holds; links and empty folders stand for themselves."""
    inside = sorted(entry.iterdir()) if entry.is_dir() and not entry.is_symlink() else []
    return inside or [entry]


def read_recipe_text(folder: Path) -> str | None:
    """The text of the recipe in an output folder, or None. Raises `Malformed` for one that is no text of ordinary size."""
    path = folder / RECIPE_FILE
    return read_text(path, "the recipe") if path.is_file() else None


def write_model_card(folder: Path, provenance: Provenance, name: str | None = None, *, library: str = "transformers") -> Path:
    """Write `README.md`: front matter for hubs, lineage, licences, recipe, what landed.

    Folders of this machine shrink to their names. `library` is what loads the output: transformers, or peft for an adapter.
    """
    front = front_matter(provenance, library)
    rows = "\n".join(
        f"| {markdown_inline(s.name)} | {s.role} | {markdown_inline(public_name(s.ref))} | "
        f"{markdown_inline(s.licence or 'not stated')} | "
        f"{s.identity.sha256[:16] if s.identity else 'not recorded'} |"
        for s in provenance.sources
    )
    recipe = provenance.recipe
    for source in sorted(provenance.sources, key=lambda s: -len(s.ref)):
        recipe = recipe.replace(source.ref, public_name(source.ref))
    warnings = "".join(f"\n- {markdown_inline(w)}" for w in provenance.warnings)
    text = f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()}
---
# {markdown_inline(name or folder.name)}

A merge of {len(provenance.sources)} sources by `{provenance.method}`, made with {provenance.product}
(engine {provenance.engine_version}, seed {provenance.seed if provenance.seed is not None else "not used"}).
{_stored_form(provenance)}
## Lineage and licences

| source | role | from | licence | identity |
|---|---|---|---|---|
{rows}

{_licence_note({s.licence for s in provenance.sources})}

## Recipe

{markdown_code(recipe, "yaml")}
{_landing(provenance)}{f"{chr(10)}## Warnings{chr(10)}{warnings}{chr(10)}" if warnings else ""}
`{PROVENANCE_FILE}` holds the full record. A merge inherits what its sources were trained on; measure it before you rely on it.
"""
    path = folder / CARD_FILE
    write_text(path, text)
    return path


def front_matter(provenance: Provenance, library: str) -> dict[str, Any]:
    """The metadata that a hub reads. What it takes only as an id of its own (base models, licences) and has none is left out."""
    adapter = library == "peft"
    named = [source for source in provenance.sources if not adapter or source.role == "base"]
    bases = list(dict.fromkeys(found for source in named if (found := source_id(source)) is not None))
    front: dict[str, Any] = {"library_name": library, "tags": ["merge", "mergekit", "model-merging", provenance.method]}
    if bases:
        front = {"base_model": bases, "base_model_relation": "adapter" if adapter else "merge"} | front
    licences = {source.licence for source in provenance.sources}
    if len(licences) == 1 and (licence := licences.pop()) is not None:
        front |= {"license": licence} if licence in known_licences() else {"license": "other", "license_name": licence}
    return front


def source_id(source: SourceRecord) -> str | None:
    """The hub id of a source (of an adapter, its own and not its base's); None for a folder that came from nowhere known."""
    part = source.ref.rpartition("+")[2]
    if Path(part).is_absolute():
        return hub_id_of(Path(part))
    name = part.partition("@")[0]
    return name if "/" in name and is_hub_id(name) else None


def _stored_form(provenance: Provenance) -> str:
    """How the weights are stored, where that is not the recipe's dtype."""
    if provenance.settings.get("output_format") != "fp8":
        return ""
    return (
        "\nThe weights are stored in FP8 as one of the sources has them: blocks that no source changed keep its bytes, "
        "the others are quantised anew (scale = largest magnitude of the block ÷ 448).\n"
    )


def _landing(provenance: Provenance) -> str:
    """How much of each source's delta the output holds, where the engine counted it."""
    if provenance.relative_error is not None:
        return f"\nThe merged deltas are approximated; relative error {provenance.relative_error:.3g} (Frobenius norm).\n"
    if not any(share is not None for share in provenance.landed.values()):
        return ""
    rows = "\n".join(
        f"| {markdown_inline(name)} | {_share(share)} | {_share(provenance.rounding_loss.get(name))} |"
        for name, share in provenance.landed.items()
    )
    return f"\n## What landed\n\n| source | share of its delta in the result | lost to rounding |\n|---|---|---|\n{rows}\n"


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def public_name(ref: str) -> str:
    """A hub id stays, also where the cache's folder stands for it; any other folder of this machine becomes its name, so that a
    card does not publish somebody's home."""
    return "+".join(hub_id_of(Path(p)) or Path(p).name if Path(p).is_absolute() else p for p in ref.split("+"))


def _licence_note(licences: set[str | None]) -> str:
    if None in licences:
        return "At least one source states no licence: find out before you publish this model."
    if len(licences) > 1:
        named = ", ".join(sorted(markdown_inline(str(licence)) for licence in licences))
        return f"The sources carry different licences ({named}): all of them apply."
    return "All sources carry the same licence."
