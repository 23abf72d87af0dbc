"""What of a merge goes to a hub: which files, under which licence, with which card; nothing secret and no path of this machine.

Files are named one by one: weights, configs, tokenizer, and the texts about the merge. A text is rewritten so that folders of
this machine become hub ids or bare names, and it is refused when a path or a secret is left in it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from mcp_server.errors import BadInput, Malformed, NotAllowed, NotFound
from mcp_server.formats.companions import CARD_FILE, PROVENANCE_FILE, RECIPE_FILE, is_tokenizer_file
from mcp_server.formats.content import content_hash
from mcp_server.formats.folder import classify, require_folder_there
from mcp_server.formats.licence import known_licences, licence_notes
from mcp_server.formats.provenance import (
    Provenance,
    front_matter,
    public_name,
    read_provenance,
    source_id,
    weight_files,
)
from mcp_server.formats.refs import is_hub_id
from mcp_server.formats.safetensors import read_header
from mcp_server.formats.tensors import read_json
from mcp_server.system.hashes import sha256_of
from mcp_server.system.redaction import redact, secrets_of

_TEXTS: Final = (
    PROVENANCE_FILE, RECIPE_FILE, "plan.yaml", "verification.json", "evaluation.json", "comparison.json",
    "report.html", "report.md",
)  # fmt: skip
_CONFIGS: Final = (
    "config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "LICENSE", "LICENSE.txt", "NOTICE",
)  # fmt: skip
_LOCAL: Final = re.compile(
    r"(?<![\w:/.~-])(?:file://)?(?:/(?:home|root|Users|tmp|work|workspace|mnt|media|opt|srv|var|data|private|Volumes|scratch|content)"
    r"/[^\s\"'<>`)\]},;|]+|~/[^\s\"'<>`)\]},;|]+)"
)
"""Where people keep models. What a text names there is a path of this machine."""
_NO_DERIVATIVES: Final = "nd"


@dataclass(frozen=True)
class Publication:
    """What is uploaded: file name in the repository → its text, or the file as it is."""

    name: str
    private: bool
    licence: str | None
    base_models: list[str]
    texts: dict[str, str]
    files: dict[str, Path]
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts.values()) + sum(p.stat().st_size for p in self.files.values())


def publication(folder: Path, name: str, *, private: bool, licence: str | None) -> Publication:
    """Raises `BadInput`, `NotFound`, `NotAllowed` for what may not be published, before anything is sent."""
    if not is_hub_id(name) or name.count("/") != 1:
        raise BadInput(f"{name!r} is not the name of a repository", "give USER/NAME")
    require_folder_there(folder)
    record = read_provenance(folder)
    if record is None or classify(folder).kind not in ("full", "lora"):
        raise NotFound(f"{folder} is no merge of this tool: it holds no {PROVENANCE_FILE}", "name a merged model or adapter")
    _require_own_evidence(folder)
    adapter = (folder / "adapter_config.json").is_file()
    chosen = _licence(record, licence)
    notes = [
        f"{source.name} has no hub id, so the card does not list it" for source in record.sources if source_id(source) is None
    ]
    known = _known_paths(folder, name, record)
    there = [folder / file for file in _TEXTS if (folder / file).is_file()]
    texts = {file.name: _scrubbed(file.read_text(encoding="utf-8"), known, file.name) for file in there}
    card = _card(folder, record, name, "peft" if adapter else "transformers", chosen)
    texts[CARD_FILE] = _scrubbed(card, known, CARD_FILE)
    files = {}
    for file in sorted(e.name for e in folder.iterdir() if e.is_file() and (e.name in _CONFIGS or is_tokenizer_file(e.name))):
        if file == "adapter_config.json":
            texts[file] = _adapter_config(folder / file, record)
        elif file in ("config.json", "tokenizer_config.json"):
            texts[file] = _scrubbed(_without_origin(folder / file), known, file)
        else:
            files[file] = folder / file
    taken = {name: path for name, path in _taken_over(folder, record).items() if name not in files and name not in texts}
    files |= taken
    if code := [name for name in taken if name.endswith(".py")]:
        notes.append(f"the sources' own code goes along ({', '.join(code)}): trust_remote_code=True runs it where it is loaded")
    if left := sorted(path.name for path in folder.glob("*.py") if path.name not in taken):
        notes.append(f"not sent: {', '.join(left)}, code that the merge did not take over from a source")
    for weights in weight_files(folder):
        _require_clean_header(weights)
        files[weights.name] = weights
    bases = [found for source in record.sources if (found := source_id(source)) is not None]
    return Publication(name, private, chosen, list(dict.fromkeys(bases)), texts, files, notes)


def superseded(there: set[str], sent: set[str]) -> list[str]:
    """What an earlier merge left in a repository and a loader or reader would take for this one's: weights, configs, evidence."""
    ours = {*_TEXTS, *_CONFIGS}
    left = [name for name in there - sent if name in ours or name.endswith((".safetensors", ".safetensors.index.json"))]
    return sorted(name for name in left if "/" not in name)


def _taken_over(folder: Path, record: Provenance) -> dict[str, Path]:
    """What else a loader reads: files that the merge copied from a source, code among them, and that are as they were written."""
    found = {}
    for name, digest in sorted(record.digests.files.items() if record.digests else ()):
        path = folder / name
        inside = ".." not in Path(name).parts and not Path(name).is_absolute() and not path.is_symlink()
        if not inside or path.suffix == ".safetensors" or not path.is_file() or sha256_of(path) != digest:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if redact(text, secrets_of(os.environ)) != text or any(own in text for own in _own_folders()):
            raise NotAllowed(
                f"{name} holds what looks like a secret, or a folder of this machine", "remove it, then publish again"
            )
        found[name] = path
    return found


def _own_folders() -> list[str]:
    return [own for own in (str(Path.home()), str(Path.cwd())) if len(own) > 1]


def _require_own_evidence(folder: Path) -> None:
    """Raises `NotAllowed` when a measurement or verification in the folder is of other files than would be sent."""
    noted = {}
    for name in ("verification.json", "evaluation.json"):
        if (folder / name).is_file() and (model := read_json(folder / name).get("model")) is not None:
            noted[name] = model
    now = content_hash(folder) if noted else None
    for name, model in noted.items():
        if model != now:
            command = "verify" if name == "verification.json" else "evaluate"
            raise NotAllowed(
                f"{name} is of other files than lie in {folder} now: the merge changed since",
                f"run model-merging {command} {folder} again, or remove {name}",
            )


def _licence(record: Provenance, wanted: str | None) -> str | None:
    """The licence of the merge. Raises `NotAllowed` where the sources' licences leave none, or none that is known."""
    stated = {source.name: source.licence for source in record.sources}
    if conflict := next((note for note in licence_notes(stated) if note.startswith("conflict:")), None):
        raise NotAllowed(
            f"the sources' licences leave none for the merge: {conflict}", "keep the merge to yourself, or ask the authors"
        )
    if closed := [f"{ref} ({lic})" for ref, lic in stated.items() if lic and _NO_DERIVATIVES in lic.split("-")]:
        raise NotAllowed(f"no derivative may be shared of {', '.join(closed)}", "keep the merge to yourself, or ask the author")
    unknown = [name for name, found in stated.items() if found is None]
    if unknown and wanted is None:
        raise NotAllowed(
            f"no licence is known for {', '.join(unknown)}",
            "find out under which terms they may be shared, then say the merge's licence: --licence ID",
        )
    found = {lic for lic in stated.values() if lic}
    binding = {lic for lic in found if known_licences().get(lic, {}).get("class") != "permissive"}
    if len(binding) > 1 and wanted is None:
        raise NotAllowed(
            f"the sources carry several licences with terms of their own: {', '.join(sorted(binding))}",
            "read what they ask together, then say the merge's licence: --licence ID",
        )
    if binding and wanted is not None and wanted not in binding:
        raise NotAllowed(f"{', '.join(sorted(binding))} passes on to the merge, which cannot be {wanted}", "leave --licence out")
    if wanted is not None:
        return wanted
    if binding:
        return binding.pop()
    if len(found) > 1:
        raise NotAllowed(
            f"the sources carry {', '.join(sorted(found))}, and the merge needs one licence", "say which: --licence ID"
        )
    return found.pop() if found else None


def _known_paths(folder: Path, name: str, record: Provenance) -> dict[str, str]:
    """Folder of this machine → what it is called in public; longer ones first, so that none is cut in two."""
    known = {str(folder): name, str(folder.resolve()): name}
    for source in record.sources:
        for text in (source.ref, source.base or ""):
            for part in text.split("+"):
                if Path(part).is_absolute():
                    known[part] = public_name(part)
                    known[os.path.realpath(part)] = public_name(part)
    return dict(sorted(known.items(), key=lambda item: -len(item[0])))


def _scrubbed(text: str, known: dict[str, str], file: str) -> str:
    """The text with folders replaced by public names. Raises `NotAllowed` when a secret stands in it."""
    for path, public in known.items():
        text = text.replace(path, public)
    text = _LOCAL.sub(lambda match: Path(match[0].rstrip(".:")).name, text)
    for own in _own_folders():
        if own in text:
            raise NotAllowed(f"{file} names the folder {own} of this machine", "remove it from the file, then publish again")
    if redact(text, secrets_of(os.environ)) != text:
        raise NotAllowed(f"{file} holds what looks like a secret", "remove it from the file, then publish again")
    return text


def _without_origin(file: Path) -> str:
    """A config without the folder that it was loaded from."""
    settings = {key: value for key, value in read_json(file).items() if key not in ("_name_or_path", "name_or_path")}
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def _adapter_config(file: Path, record: Provenance) -> str:
    """The adapter's config with its base as a hub id. Raises `NotAllowed` where none is known: nobody else could use it."""
    config = read_json(file)
    named = str(config.get("base_model_name_or_path") or "")
    found = named if is_hub_id(named) and "/" in named else None
    base = found or next((i for s in record.sources if s.role == "base" and (i := source_id(s)) is not None), None)
    if base is None:
        raise NotAllowed(
            f"the adapter names its base as {Path(named).name or 'nothing'}, a folder of this machine",
            "merge onto the base by its hub id (model-merging fetch ID), so that others find it",
        )
    return json.dumps(config | {"base_model_name_or_path": base}, indent=2, ensure_ascii=False) + "\n"


def _require_clean_header(weights: Path) -> None:
    for key, value in read_header(weights).metadata.items():
        if _LOCAL.search(str(value)) or redact(str(value), secrets_of(os.environ)) != str(value):
            raise NotAllowed(
                f"the header of {weights.name} holds {key!r}, which names this machine", "save the weights without it"
            )


def _card(folder: Path, record: Provenance, name: str, library: str, licence: str | None) -> str:
    """The merge's own card with a hub's front matter: licence, tags, and what was measured, in the hub's own schema."""
    front = front_matter(record, library)
    front.pop("license", None)
    front.pop("license_name", None)
    if licence is not None:
        front |= {"license": licence} if licence in known_licences() else {"license": "other", "license_name": licence}
    if results := _results(folder):
        front["model-index"] = [{"name": name.partition("/")[2], "results": results}]
    card = folder / CARD_FILE
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    body = text.split("\n---\n", 1)[1] if text.startswith("---\n") and "\n---\n" in text else text
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()}\n---\n{body}"


def _results(folder: Path) -> list[dict[str, Any]]:
    """evaluation.json as the entries of a model index. What was not measured on the merge has none."""
    file = folder / "evaluation.json"
    if not file.is_file():
        return []
    try:
        capabilities = read_json(file).get("capabilities")
    except Malformed:
        return []
    found = []
    for name, capability in (capabilities or {}).items() if isinstance(capabilities, dict) else ():
        value = capability.get("merged") if isinstance(capability, dict) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            metric = str(capability.get("metric") or "score")
            suite = str(capability.get("suite") or name)
            found.append(
                {
                    "task": {"type": "text-generation"},
                    "dataset": {"name": suite, "type": suite},
                    "metrics": [{"type": metric, "name": f"{name}: {metric}, {capability.get('n')} prompts", "value": value}],
                }
            )
    return found
