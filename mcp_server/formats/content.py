"""Which model is this? SHA-256 over everything that decides its answers: weights, config, tokenizer, chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from mcp_server.formats.identity import TOKENIZER_FILES
from mcp_server.system.hashes import file_sha256, known_sha256

WEIGHTS: Final = ".safetensors"
DECIDES: Final = {*TOKENIZER_FILES, "config.json", "generation_config.json", "adapter_config.json"}
"""Beside the weights. Whatever else lies in a folder (records, evidence, training logs) does not change an answer."""


def content_hash(*folders: Path | None, remembered: bool = False) -> str:
    """Of a model's folder and its adapter's, if any. Scores are evidence, so files are read anew unless `remembered`."""
    return _joined({file: file_sha256(file, remembered=remembered) for file in _deciding(folders)}, folders)


def known_content(*folders: Path | None) -> str | None:
    """The same from what was noted of the files as they are now; null where one was never read. For estimates: instant."""
    found = {}
    for file in _deciding(folders):
        if (known := known_sha256(file)) is None:
            return None
        found[file] = known
    return _joined(found, folders)


def _deciding(folders: Iterable[Path | None]) -> list[Path]:
    inside = [sorted(folder.iterdir()) for folder in folders if folder is not None]
    return [file for files in inside for file in files if (file.suffix == WEIGHTS or file.name in DECIDES) and file.is_file()]


def _joined(hashes: Mapping[Path, str], folders: Iterable[Path | None]) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        if folder is None:
            continue
        for file, found in hashes.items():
            if file.parent == folder:
                digest.update(f"{file.name}\0{found}\0".encode())
        digest.update(b"+")
    return digest.hexdigest()
