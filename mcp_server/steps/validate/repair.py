"""`--fix`: correct, look again, until nothing more can be corrected."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import Malformed
from mcp_server.formats.recipe import parse_document
from mcp_server.formats.recipe.edit import edited
from mcp_server.schemas.base import OutputFormat
from mcp_server.schemas.validation import Finding, Validation
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.fixes import CORRECTIONS
from mcp_server.steps.validate.registry import rules
from mcp_server.steps.validate.run import Planner, validate
from mcp_server.system.yaml_io import Document, read_documents

ROUNDS: Final = 4
"""A correction can bring another fault to light (a misspelt method its parameters), never many in a row."""


def fix(
    text: str,
    *,
    folder: Path | None = None,
    ram_gib: float | None = None,
    output_format: OutputFormat | None = None,
    deep: bool = False,
    planner: Planner | None = None,
) -> Validation:
    """The recipe corrected as far as it can be, what was changed, and the findings before and after.

    Only the lines at fault change; `fixed_recipe` is null when none does. A correction that would take more than that (behind
    an alias that others share) or bring a fault of its own is left out, and its finding stays. The other arguments: `validate`.
    """
    folder = (folder or Path.cwd()).resolve()
    judged = partial(validate, folder=folder, ram_gib=ram_gib, output_format=output_format)
    text = text.removeprefix("\ufeff")  # places in the text are counted without it
    before = found = judged(text)
    changes: list[str] = []
    for _ in range(ROUNDS if any(rules()[f.code].fixable for f in found.findings) else 0):
        corrected, made = _round(text, found.findings, folder)
        if not made:
            break
        text, changes = corrected, changes + made
        found = judged(text)
    if deep:  # mergekit's planner takes seconds to start: it is asked about the end alone
        found = judged(text, deep=True, planner=planner)
    if not changes:
        return found
    return found.model_copy(update={"fixed_recipe": text, "changes": changes, "before": before.findings})


def _round(text: str, findings: list[Finding], folder: Path) -> tuple[str, list[str]]:
    """Every correction that the findings ask for, one kind after the other, each on the text as the one before left it."""
    try:
        documents = read_documents(text, "the recipe")
    except Malformed:
        return text, []
    changes: list[str] = []
    for number in range(len(documents)):
        prefix = f"stages[{number}]" if len(documents) > 1 else ""
        mine = (f for f in findings if not prefix or f.where == prefix or f.where.startswith(f"{prefix}."))
        codes = {f.code for f in mine if rules()[f.code].fixable}
        for correction, its_codes in CORRECTIONS:
            if not codes.intersection(its_codes) or not isinstance(documents[number].value, dict):
                continue
            context = _context(documents, number, folder)
            faults = {(p.code, p.where) for p in context.problems}
            made = list(correction(context))
            new = edited(text, documents, number, context.document) if made else None
            if new is None or {(p.code, p.where) for p in parse_document(context.document)[1]} - faults:
                continue
            text, documents = new, read_documents(new, "the recipe")
            changes += [f"{prefix}.{change}" if prefix else change for change in made]
    return text, changes


def _context(documents: list[Document], number: int, folder: Path) -> Context:
    names = [str(d.value["name"]) for d in documents if isinstance(d.value, dict) and d.value.get("name")]
    document = unshared(documents[number].value)
    recipe, problems = parse_document(document)
    return Context(
        document, recipe, problems, folder, documents[number].homes, stage_names=frozenset(names if len(documents) > 1 else ())
    )


def unshared(value: Any) -> Any:
    """A copy in which every alias has a value of its own: what is corrected in one place must not change another, or hold itself.

    The reader bounds depth and expanded size, so this ends.
    """
    if isinstance(value, dict):
        return {key: unshared(inner) for key, inner in value.items()}
    return [unshared(inner) for inner in value] if isinstance(value, list) else value
