"""validate: findings by line, corrections as a diff, and what a code means."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mcp_server.cli.console import Json, emit, say
from mcp_server.errors import BadInput, Malformed, NotFound, OutputExists, did_you_mean
from mcp_server.jobs.ask import ask_planner
from mcp_server.schemas.base import OutputFormat
from mcp_server.schemas.validation import Finding, Validation
from mcp_server.steps.validate import LintRule, rules
from mcp_server.steps.validate import fix as fix_recipe
from mcp_server.steps.validate import validate as validate_recipe
from mcp_server.system.files import write_text
from mcp_server.system.yaml_io import MAX_BYTES

STDIN = Path("-")


def register(app: typer.Typer) -> None:
    app.command()(validate)


def validate(
    recipe: Annotated[Path | None, typer.Argument(help="recipe YAML, or - for standard input")] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="correct what can be corrected and show the diff; the old file is kept as RECIPE.orig")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="also ask mergekit's own planner (slow start)")] = False,
    ram_gib: Annotated[float | None, typer.Option(help="memory that the merge may use")] = None,
    output_format: Annotated[OutputFormat | None, typer.Option(help="as in merge: whether the result can be stored so")] = None,
    explain: Annotated[str | None, typer.Option(help="say what a code means, such as MM207, and check nothing")] = None,
    json: Json = False,
) -> int:
    """Find what would fail late or silently, before anything runs."""
    if explain is not None:
        rule = rule_of(explain)
        emit(rule, json, lambda: show_rule(rule))
        return 0
    if recipe is None:
        raise BadInput("no recipe is given", "name a recipe file, - for standard input, or --explain CODE")
    text = read_exactly(recipe)
    folder = Path.cwd() if recipe == STDIN else recipe.resolve().parent
    judge = fix_recipe if fix else validate_recipe
    found = judge(text, folder=folder, deep=deep, planner=ask_planner, ram_gib=ram_gib, output_format=output_format)
    if found.fixed_recipe is not None and recipe != STDIN:
        replace_keeping(recipe, text, found.fixed_recipe)
    name = "standard input" if recipe == STDIN else str(recipe)
    emit(found, json, lambda: show(found, name, text))
    return 0 if found.ok else 1


def rule_of(code: str) -> LintRule:
    """Raises `NotFound` for a code that there is not, with the nearest one."""
    if (rule := rules().get(code.upper())) is None:
        raise NotFound(f"there is no code {code!r}.{did_you_mean(code.upper(), rules())}", "docs/lint.md lists them all")
    return rule


def read_exactly(recipe: Path) -> str:
    """The text with its line ends as they are. Raises `NotFound`, `Malformed`."""
    if recipe != STDIN and not recipe.is_file():
        raise NotFound(f"there is no recipe at {recipe}", "give the path of a recipe file")
    if recipe == STDIN:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        with recipe.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise Malformed(f"{recipe} is longer than the limit of {MAX_BYTES:,} bytes", "is it the right file?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"{recipe} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error


def replace_keeping(recipe: Path, old: str, new: str) -> None:
    """Write the corrected text; the old one lies beside it. Raises `OutputExists` rather than lose an older original.

    Where a write fails, the recipe is as it was. What a link leads to is corrected, the link stays.
    """
    keep = recipe.with_name(recipe.name + ".orig")
    if os.path.lexists(keep) and (keep.is_symlink() or keep.read_bytes() != old.encode("utf-8")):
        raise OutputExists(f"{keep} exists already", "remove it or move it away first: it keeps an older original")
    write_text(keep, old)
    write_text(Path(os.path.realpath(recipe)), new)


def show(found: Validation, name: str, text: str) -> None:
    """Each finding with its place and what to do, then the diff, the verdict last."""
    for finding in found.findings:
        say(f"{name}{_place(finding)}: {finding.severity} {finding.code}: {finding.message}\n")
        if finding.fix:
            say(f"    fix: {finding.fix}\n")
    if found.fixed_recipe is not None:
        old, new = (part.splitlines(keepends=True) for part in (text, found.fixed_recipe))
        for line in difflib.unified_diff(old, new, fromfile=name, tofile=f"{name} (corrected)"):
            say(line.rstrip("\r\n") + "\n")
    for change in found.changes:
        say(f"changed: {change}\n")
    say(f"{'valid' if found.ok else 'invalid'} (checked as far as: {found.level})\n")


def _place(finding: Finding) -> str:
    where = f" ({finding.where})" if finding.where else ""
    return f":{finding.line}:{finding.column}{where}" if finding.line else where


def show_rule(rule: LintRule) -> None:
    say(f"{rule.code} {rule.title} ({rule.severity})\n")
    say(f"\n{rule.what}\n\n")
    for label, said in (("why", rule.why), ("example", rule.example), ("fix", rule.fix)):
        say(f"{label}: {said}\n")
    if rule.fixable:
        say("validate --fix corrects it.\n")
