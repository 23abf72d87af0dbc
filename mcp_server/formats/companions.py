"""The files beside weights and config that a model needs to be used: tokenizer, processors, templates, generation settings, code.

Everything that a loader may read travels (code is copied, never run); weights, indexes, licences, cards and training leftovers do
not. How a chat model ends its turns lies in three small files; `TurnSettings` puts them side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import MergingError
from mcp_server.formats.identity import TOKENIZER_FILES, chat_template_hash, token_ids
from mcp_server.formats.tensors import read_json

PROVENANCE_FILE: Final = "merge_provenance.json"
RECIPE_FILE: Final = "mergekit_config.yml"
CARD_FILE: Final = "README.md"
_SUFFIXES: Final = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".vocab", ".bpe", ".spm", ".py")
_NOT_OURS: Final = (
    "config.json", "adapter_config.json", PROVENANCE_FILE, "trainer_state.json", "all_results.json", "train_results.json",
    "eval_results.json", "training_args.json", "quantize_config.json", "quant_config.json", "requirements.txt",
    "dataset_infos.json", "latest.txt",
)  # fmt: skip
_MOST_BYTES: Final = 1 << 28
GENERATION: Final = "generation_config.json"
SPECIAL: Final = ("eos_token", "pad_token", "bos_token")
IDS: Final = ("eos_token_id", "pad_token_id", "bos_token_id")


def companions(folder: Path) -> list[str]:
    """Names of the files to copy, relative to the folder, with those of a sentence encoder's module folders."""
    found = [path.name for path in sorted(folder.iterdir()) if _is_companion(path)]
    for part in (*_modules(folder), "additional_chat_templates"):
        inside = folder / part
        if inside.is_dir():
            found += [f"{part}/{path.name}" for path in sorted(inside.iterdir()) if path.is_file() and _small(path)]
    return found


def tokenizer_companions(folder: Path) -> list[str]:
    """Those of them that say which text is which token and how a conversation is written."""
    return [name for name in companions(folder) if is_tokenizer_file(name)]


def is_tokenizer_file(name: str) -> bool:
    return (
        name in TOKENIZER_FILES
        or name.startswith(("tokenizer", "tekken", "sentencepiece", "additional_chat_templates/", "vocab", "merges"))
        or name.endswith((".tiktoken", ".spm", ".bpe", ".model"))
    )


def _is_companion(path: Path) -> bool:
    name = path.name
    if name.startswith(".") or name in _NOT_OURS or name.endswith(".index.json") or name.upper().startswith(("LICEN", "NOTICE")):
        return False
    return (name.endswith(_SUFFIXES) or name.startswith("tokenizer.model")) and path.is_file() and _small(path)


def _small(path: Path) -> bool:
    return path.stat().st_size <= _MOST_BYTES


def _modules(folder: Path) -> list[str]:
    """Folders that a sentence encoder's modules.json names, such as 1_Pooling."""
    import json

    path = folder / "modules.json"
    if not path.is_file() or not _small(path):
        return []
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return []
    named = [entry.get("path") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return [name for name in named if isinstance(name, str) and name and Path(name).name == name and name != ".."]


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """How a model ends its turns and pads: special tokens, ids of generation_config and config, and the chat template's hash."""

    settings: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> TurnSettings:
        found: dict[str, Any] = {}
        tokenizer, generation, config = (_table(folder / name) for name in ("tokenizer_config.json", GENERATION, "config.json"))
        for key in SPECIAL:
            value = tokenizer.get(key)
            found[key] = value.get("content") if isinstance(value, dict) else value
        found |= {f"generation_config {key}": generation.get(key) for key in IDS}
        found |= {f"config {key}": config.get(key) for key in IDS}
        try:
            found["chat template"] = chat_template_hash(folder)
        except (MergingError, OSError):
            found["chat template"] = None
        return cls({key: value for key, value in found.items() if value is not None})

    def differences(self, other: TurnSettings) -> list[str]:
        """What this model sets and the other sets otherwise or not at all, in words."""
        return [
            f"{key} {_short(value)} ({_short(other.settings[key])})" if key in other.settings else f"{key} {_short(value)} (none)"
            for key, value in self.settings.items()
            if other.settings.get(key) != value
        ]


def keeps_token_ids(source: Path, base: Path) -> bool:
    """Whether every token of the base has the same number in the source's tokenizer, which may have more."""
    try:
        ours, theirs = token_ids(source), token_ids(base)
    except MergingError:
        return False
    if ours is None or theirs is None:
        return False
    return all(ours.get(token) == number for token, number in theirs.items())


def _table(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except MergingError:
        return {}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
