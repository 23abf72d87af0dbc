"""Which model is this? SHA-256 over everything that decides its answers: weights, config, tokenizer, chat template."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from mcp_server.formats.identity import TOKENIZER_FILES
from mcp_server.system.hashes import file_sha256

DECIDES: Final = {*TOKENIZER_FILES, "config.json", "generation_config.json", "adapter_config.json"}
"""Beside the weights. Whatever else lies in a folder (records, evidence, training logs) does not change an answer."""


def content_hash(*folders: Path | None, remembered: bool = False) -> str:
    """Of a model's folder and its adapter's, if any. Scores are evidence, so files are read anew unless `remembered`."""
    digest = hashlib.sha256()
    for folder in folders:
        if folder is None:
            continue
        for file in sorted(folder.iterdir()):
            if (file.suffix == ".safetensors" or file.name in DECIDES) and file.is_file():
                digest.update(f"{file.name}\0{file_sha256(file, remembered=remembered)}\0".encode())
        digest.update(b"+")
    return digest.hexdigest()
