"""Parse and print model references as mergekit writes them: `base`, `base@revision`, `base+adapter`, or a table of those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from mcp_server.errors import Malformed
from mcp_server.formats.recipe.types import ModelRef
from mcp_server.system.yaml_io import load_yaml_all

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


Rewrite = Callable[[ModelRef], ModelRef]
_REF_KEYS = ("model", "base_model", "source_model")


def rewrite_refs(text: str, rewrite: Rewrite) -> str:
    """`text` with every reference passed through `rewrite`. Names that are no reference (tokenizer 'union') stay."""
    documents = load_yaml_all(text, "the recipe")
    stages = {str(d["name"]) for d in documents if isinstance(d, dict) and d.get("name")}
    changed = [_walk(document, rewrite, stages, inside_tokenizer=False) for document in documents]
    return text if changed == documents else yaml.safe_dump_all(changed, sort_keys=False, allow_unicode=True)


def _walk(value: Any, rewrite: Rewrite, stages: set[str], *, inside_tokenizer: bool) -> Any:
    if isinstance(value, list):
        return [_walk(item, rewrite, stages, inside_tokenizer=inside_tokenizer) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, item in value.items():
        inside = inside_tokenizer or key == "tokenizer"
        if key == "parameters":
            found[key] = item
        elif key in _REF_KEYS and item is not None:
            found[key] = _rewritten(item, rewrite, stages)
        elif (key == "tokenizer_source" or (inside and key == "source")) and isinstance(item, str):
            found[key] = item if item in ("base", "union") else _rewritten(item, rewrite, stages)
        else:
            found[key] = _walk(item, rewrite, stages, inside_tokenizer=inside)
    return found


def _rewritten(item: Any, rewrite: Rewrite, stages: set[str]) -> Any:
    try:
        ref = parse_ref(item)
    except Malformed:
        return item
    if ref.base in stages:
        return item
    new = rewrite(ref)
    if new == ref:
        return item
    if new.override_architecture is None:
        return str(new)
    model = {"path": new.base, "revision": new.revision}
    lora = {"path": new.adapter, "revision": new.adapter_revision} if new.adapter else None
    return {"model": model, "lora": lora, "override_architecture": new.override_architecture}
