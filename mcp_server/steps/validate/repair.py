"""`--fix`: correct, look again, until nothing more can be corrected."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from mcp_server.errors import Malformed
from mcp_server.formats.recipe import parse_document
from mcp_server.schemas.validation import Finding, Validation
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.fixes import apply_fixes
from mcp_server.steps.validate.registry import rules
from mcp_server.steps.validate.run import validate
from mcp_server.system.yaml_io import load_yaml_all

ROUNDS: Final = 6
"""A correction can bring another fault to light (a base that is named can then be missing in the slices), never many in a row."""


def fix(text: str, *, folder: Path | None = None) -> Validation:
    """The recipe corrected as far as it can be, what was changed, and what is left. `fixed_recipe` is null when nothing changed.

    Comments are not kept: the text is written anew.
    """
    folder = (folder or Path.cwd()).resolve()
    try:
        documents = [unshared(document) for document in load_yaml_all(text, "the recipe")]
    except Malformed:
        return validate(text, folder=folder)
    changes: list[str] = []
    found = validate(text, folder=folder)
    for _ in range(ROUNDS):
        made = _round(documents, found.findings, folder)
        if not made:
            break
        changes += made
        found = validate(write(documents), folder=folder)
    if not changes:
        return found
    if any(line.lstrip().startswith("#") or " #" in line for line in text.splitlines()):
        changes.append("comments were not kept")
    return found.model_copy(update={"fixed_recipe": write(documents), "changes": changes})


def unshared(value: Any) -> Any:
    """A copy in which every alias has a value of its own: what is corrected in one place must not change another, or hold itself.

    The reader bounds depth and expanded size, so this ends.
    """
    if isinstance(value, dict):
        return {key: unshared(inner) for key, inner in value.items()}
    return [unshared(inner) for inner in value] if isinstance(value, list) else value


def write(documents: list[Any]) -> str:
    """YAML as mergekit reads it back: key order kept, short lists of numbers on one line."""
    return "---\n".join(
        yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120) for document in documents
    )


def _round(documents: list[Any], findings: list[Finding], folder: Path) -> list[str]:
    changes: list[str] = []
    names = (
        frozenset(str(d["name"]) for d in documents if isinstance(d, dict) and d.get("name"))
        if len(documents) > 1
        else frozenset()
    )
    for number, document in enumerate(documents):
        if not isinstance(document, dict):
            continue
        prefix = f"stages[{number}]" if len(documents) > 1 else ""
        codes = {f.code for f in findings if f.where.startswith(prefix) and rules()[f.code].fixable}
        if not codes:
            continue
        recipe, problems = parse_document(document)
        context = Context(document, recipe, problems, folder, stage_names=names)
        changes += [f"{prefix}.{change}" if prefix else change for change in apply_fixes(context, codes)]
    return changes


class _Dumper(yaml.SafeDumper):
    """Two spaces before a dash, as people write it; numbers of a list on one line; no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:  # noqa: ARG002 - the library's signature
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the library's signature
        return True


def _list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.SequenceNode:
    plain = all(isinstance(item, (int, float)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


_Dumper.add_representer(list, _list)
