"""Fingerprints that decide whether two checkpoints speak of the same thing: architecture, tokenizer, chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mcp_server.formats import chat_template
from mcp_server.formats.hub.copies import is_copy, listing_of
from mcp_server.formats.hub.headers import bring
from mcp_server.formats.tensors import StoredTensor, read_json
from mcp_server.system.guard import open_read
from mcp_server.system.remembered import Remembered

FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "d_ff"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num"),
    "vocabulary": ("vocab_size",),
}
"""Our name → the names that model families use, in order of preference."""

HASH_CHARACTERS: Final = 16


def config_field(config: dict[str, Any], field: str) -> int | None:
    """A shape field by our name, from the config or the language part of a multimodal one."""
    for table in (config, config.get("text_config")):
        if isinstance(table, dict):
            for key in FIELDS[field]:
                if type(table.get(key)) is int:
                    return int(table[key])
    return None


def text_section(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model: `text_config` of a multimodal one, else the whole."""
    section = config.get("text_config")
    return section if isinstance(section, dict) and section else config


def architectures(config: Mapping[str, Any]) -> list[str]:
    """The classes that a config names; none when it names them in another form."""
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def architecture_name(config: Mapping[str, Any]) -> str | None:
    return next(iter(architectures(config)), None)


def architecture_hash(config: dict[str, Any], tensors: dict[str, StoredTensor]) -> str:
    """Equal hashes mean that the weights line up tensor by tensor: architecture, names and shapes; dtypes may differ.

    A tied `lm_head` that some tools write and others leave out does not count.
    """
    tied = config.get("tie_word_embeddings") is True
    shapes = sorted((name, tensor.shape) for name, tensor in tensors.items() if not (tied and name == "lm_head.weight"))
    return _digest(json.dumps([architecture_name(config), config_field(config, "heads"), shapes]).encode())


def tokenizer_hash(folder: Path) -> str | None:
    """Hash of the tokenizer's files, or None when the folder has none. Equal means equal ids; unequal needs `token_ids`.

    Of a copy of headers it is a hash of what the hub lists, until the files are here.
    """
    if is_copy(folder):
        blobs = listing_of(folder).blobs
        named = [name for name in VOCABULARY_FILES if name in blobs]
        if not all((folder / name).is_file() for name in named[:1]):
            return _digest(json.dumps([blobs[name] for name in named[: 1 if named[0] == "tokenizer.json" else None]]).encode())
    digest = hashlib.sha256()
    found = False
    for name in VOCABULARY_FILES:
        path = folder / name
        if path.is_file():
            found = True
            with open_read(path) as stream:
                digest.update(name.encode() + stream.read())
            if name == "tokenizer.json":
                break
    return digest.hexdigest()[:HASH_CHARACTERS] if found else None


def unread_tokenizer(folder: Path) -> bool:
    """Whether a copy of headers has its tokenizer only in its listing so far."""
    return is_copy(folder) and "tokenizer.json" in listing_of(folder).sizes and not (folder / "tokenizer.json").is_file()


_VOCABULARIES: Final = Remembered[dict[str, int]](most=4)
"""A large vocabulary takes tens of megabytes, and one merge asks for few of them, many times."""


def token_ids(folder: Path) -> dict[str, int] | None:
    """Token → id from tokenizer.json, or None when it is absent or of another form (a plain SentencePiece file)."""
    path = folder / "tokenizer.json"
    if is_copy(folder):
        bring(folder, VOCABULARY_FILES)
    if not path.is_file():
        return None
    about = path.stat()
    ids = _VOCABULARIES.of(about)
    if ids is None:
        ids = _ids_in(read_json(path))
        _VOCABULARIES.keep(about, ids)
    return dict(ids) or None


def _ids_in(data: dict[str, Any]) -> dict[str, int]:
    model = data.get("model") if isinstance(data.get("model"), dict) else {}
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[str, int] = {}
    if isinstance(vocabulary, dict):
        ids.update({str(token): number for token, number in vocabulary.items() if type(number) is int})
    elif isinstance(vocabulary, list):
        ids.update({str(entry[0]): number for number, entry in enumerate(vocabulary) if isinstance(entry, list) and entry})
    for added in data.get("added_tokens") or []:
        if isinstance(added, dict) and type(added.get("id")) is int:
            ids[str(added.get("content"))] = added["id"]
    return ids


def chat_template_hash(folder: Path) -> str | None:
    """Hash of the chat template, or of all where there are several; surrounding blanks do not count."""
    texts = {name: text.strip() for name, text in chat_template.stored(folder).items()}
    if texts.keys() == {chat_template.DEFAULT}:
        return _digest(texts[chat_template.DEFAULT].encode())
    return _digest(json.dumps(texts, sort_keys=True).encode()) if texts else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:HASH_CHARACTERS]


VOCABULARY_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
"""What says which text is which token."""

TOKENIZER_FILES: Final = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""All that travels with a model so that it reads and answers as before."""
