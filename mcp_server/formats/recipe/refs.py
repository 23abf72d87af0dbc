"""Parse and print model references as mergekit writes them: `base`, `base@revision`, `base+adapter`, or a table of those."""

from __future__ import annotations

from typing import Any

from mcp_server.errors import Malformed
from mcp_server.formats.recipe.types import ModelRef

FORM = "write a folder or hub id, or base+adapter for a LoRA adapter"


def parse_ref(value: Any, where: str = "model") -> ModelRef:
    """A `ModelRef` from its text or table form. Raises `Malformed` for what mergekit cannot parse either."""
    if isinstance(value, str):
        return _from_text(value, where)
    if isinstance(value, dict):
        return _from_table(value, where)
    raise Malformed(f"{where} is {value!r}, not the name of a model", FORM, where=where)


def _from_text(text: str, where: str) -> ModelRef:
    parts = text.split("+")
    if len(parts) > 2:
        raise Malformed(
            f"{where}: {text!r} has {len(parts) - 1} '+'; one adapter can be named",
            "merge one adapter per source, or rename the folder if '+' is part of its name",
            where=where,
        )
    base, revision = _split_revision(parts[0], text, where)
    adapter, adapter_revision = _split_revision(parts[1], text, where) if len(parts) == 2 else (None, None)
    return ModelRef(base=base, revision=revision, adapter=adapter, adapter_revision=adapter_revision)


def _split_revision(text: str, whole: str, where: str) -> tuple[str, str | None]:
    path, *revisions = text.split("@")
    if len(revisions) > 1:
        raise Malformed(f"{where}: {whole!r} has more than one '@'", "write path@revision", where=where)
    if not path.strip():
        raise Malformed(f"{where}: {whole!r} has an empty name", FORM, where=where)
    return path, revisions[0] if revisions else None


def _from_table(table: dict[str, Any], where: str) -> ModelRef:
    """mergekit's long form: {model: {path, revision}, lora: {…}, override_architecture: NAME}."""
    base, revision = _path(table.get("model"), f"{where}.model")
    adapter: str | None = None
    adapter_revision: str | None = None
    if table.get("lora") is not None:
        adapter, adapter_revision = _path(table["lora"], f"{where}.lora")
    override = table.get("override_architecture")
    if override is not None and not isinstance(override, str):
        at = f"{where}.override_architecture"
        raise Malformed(f"{at} is {override!r}, not a name", "write an architecture's class name", where=at)
    return ModelRef(
        base=base,
        revision=revision,
        adapter=adapter,
        adapter_revision=adapter_revision,
        override_architecture=override,
    )


def _path(value: Any, where: str) -> tuple[str, str | None]:
    if isinstance(value, str):
        return _split_revision(value, value, where)
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        revision = value.get("revision")
        return value["path"], str(revision) if revision is not None else None
    raise Malformed(f"{where} is {value!r}, not the name of a model", FORM, where=where)
