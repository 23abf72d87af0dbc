"""The folder that an export leaves: `export.json` names every file that belongs to it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import ValidationError

from mcp_server.errors import MergingError
from mcp_server.formats.tensors import read_json
from mcp_server.schemas.export import Exported

EXPORT_FILE: Final = "export.json"


def read_export(folder: Path) -> Exported | None:
    """The record of an export, or None where there is none of ours."""
    try:
        return Exported.model_validate(read_json(folder / EXPORT_FILE))
    except (MergingError, ValidationError):
        return None


def not_an_export(folder: Path) -> str | None:
    """Why a folder is not an export of ours and nothing else, or None when it is: only that is replaced by a new one."""
    record = read_export(folder)
    if record is None:
        return f"holds no {EXPORT_FILE} of ours (an export of this tool has one)"
    for entry in sorted(folder.iterdir()):
        if not entry.is_file() or entry.name not in {*record.files, EXPORT_FILE}:
            return f"holds {entry.name!r}, which is not part of the export"
    return None
