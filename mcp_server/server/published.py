"""Input schemas as clients see them: what an agent needs to fill one in, and nothing that it pays for twice.

Every client puts every tool's schema in front of its model in every turn. So here optional arguments lose the `null` that
pydantic adds (leaving one out says the same), texts and lists their upper bounds, parts their titles, examples and second
descriptions; definitions that are used once stand where they are used. Calls are checked against the whole schema all the same.
"""

from __future__ import annotations

import json
from typing import Any, Final

DROPPED: Final = frozenset({"title", "examples", "minLength", "maxLength", "minItems", "maxItems", "maxProperties"})
NULL: Final = {"type": "null"}
LARGEST: Final = 1_000
"""An upper bound above this guards us against nonsense and tells an agent nothing."""

Schema = dict[str, Any]


def input_schema(schema: Schema) -> Schema:
    """The schema of a tool's arguments, smaller and with the same meaning for every argument that may be given."""
    definitions = {name: _part(part) for name, part in schema.get("$defs", {}).items()}
    for name, part in definitions.items():
        _refer_to_shared(name, part, definitions)
    found = _part({key: value for key, value in schema.items() if key != "$defs"})
    while once := [name for name in definitions if (json.dumps(definitions) + json.dumps(found)).count(_ref(name)) == 1]:
        known = {once[0]: definitions.pop(once[0])}
        found, definitions = _inlined(found, known), _inlined(definitions, known)
    used = {name: part for name, part in definitions.items() if _ref(name) in json.dumps(definitions) + json.dumps(found)}
    return {**({"$defs": used} if used else {}), **found, "additionalProperties": False}


def _part(schema: Any, described: bool = False) -> Any:
    """One schema, without what is dropped; `described` when what holds it has a description already."""
    if not isinstance(schema, dict):
        return schema
    options = [option for option in schema.get("anyOf", []) if option != NULL]
    if len(options) == 1:
        return _part({**options[0], **{k: v for k, v in schema.items() if k != "anyOf"}}, described)
    told = described or "description" in schema
    found: Schema = {}
    for key, value in schema.items():
        if key in DROPPED or (key == "description" and described) or (key == "default" and value in (None, False)):
            continue
        if key == "additionalProperties" and isinstance(value, bool):
            continue
        if key in ("maximum", "exclusiveMaximum") and value > LARGEST:
            continue
        if key == "properties":
            found[key] = {name: _part(part) for name, part in value.items()}
        elif key == "prefixItems":
            found["items"] = _part(value[0], told)
        elif key == "anyOf":
            found[key] = [_part(option, told) for option in options]
        elif key in ("items", "additionalProperties"):
            found[key] = _part(value, told)
        else:
            found[key] = value
    return found


def _refer_to_shared(name: str, part: Schema, definitions: dict[str, Schema]) -> None:
    """A definition that holds all properties of another one keeps its own, and names the other."""
    own = part.get("properties", {})
    for other, smaller in definitions.items():
        shared = smaller.get("properties", {})
        if other != name and len(shared) > 1 and shared.items() < own.items():
            part["properties"] = {key: value for key, value in own.items() if key not in shared}
            part["description"] = f"also the fields of {other.lower()}"


def _inlined(schema: Any, known: dict[str, Schema]) -> Any:
    if isinstance(schema, list):
        return [_inlined(item, known) for item in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).rsplit("/", 1)[-1]
    if name in known:
        return {**known[name], **{key: value for key, value in schema.items() if key != "$ref"}}
    return {key: _inlined(value, known) for key, value in schema.items()}


def _ref(name: str) -> str:
    return f'"#/$defs/{name}"'
