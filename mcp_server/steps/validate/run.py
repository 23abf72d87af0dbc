"""Lint a recipe: run every check that can be decided with what is here, and say which could not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import BadInput, Incompatible, Malformed, NotAModel, NotFound
from mcp_server.formats.recipe import Problem, Recipe, parse_document
from mcp_server.formats.recipe.places import place_of, places
from mcp_server.schemas.validation import Finding, Validation
from mcp_server.steps.validate import (  # noqa: F401 - they register
    adapters,
    behaviour,
    checkpoints,
    engines,
    experts,
    form,
    inputs,
    layers,
    parameters,
    resources,
    scale,
    sources,
    weights,
)
from mcp_server.steps.validate.context import Context, Unknown
from mcp_server.steps.validate.form import is_moe, is_moe_in_disguise
from mcp_server.steps.validate.registry import CHECKS, rules, run_check
from mcp_server.system.yaml_io import read_documents

Planner = Callable[[str, Path], list[str]]
"""Recipe text and folder → what mergekit's planner refuses, in its own words; [] when it accepts. May raise `NotFound`."""

WHOLE = ("MM501", "MM502", "MM503", "MM504", "MM605")
"""Decided once for the whole recipe, not for each stage."""
PLANS = ("MM330", "MM331")
"""Asked last, and only when nothing else is wrong: they say in other words what the other checks have said."""


def validate(
    text: str,
    *,
    folder: Path | None = None,
    ram_gib: float | None = None,
    out: Path | None = None,
    deep: bool = False,
    planner: Planner | None = None,
) -> Validation:
    """Every finding about a recipe. `folder` is what its relative paths are relative to (default: the working directory).

    `ram_gib` and `out` add the resource checks. `deep` also asks mergekit's own planner, through `planner`, which runs it in a
    process of its own (this package starts none).
    Never raises for what a recipe says: broken YAML is a finding too.
    """
    folder = (folder or Path.cwd()).resolve()
    try:
        read = read_documents(text, "the recipe")
    except Malformed as error:
        line, column = error.details.get("line"), error.details.get("column")
        broken = _finding("MM101", error.message, "", error.next_step).model_copy(update={"line": line, "column": column})
        return Validation(ok=False, findings=[broken], level="yaml")
    documents = [document.value for document in read]
    stages = [parse_document(document, text if len(documents) < 2 else "") for document in documents or [None]]
    names = frozenset(r.name for r, _ in stages if r.name) if len(stages) > 1 else frozenset()
    found: list[Finding] = []
    skipped: dict[str, str] = {}
    here = True
    for number, ((recipe, problems), document) in enumerate(zip(stages, documents or [None], strict=True)):
        table = document if isinstance(document, dict) else {}
        context = Context(table, recipe, problems, folder, stage_names=names)
        prefix = f"stages[{number}]." if len(stages) > 1 else ""
        found += _stage(context, prefix, skipped)
        here = here and not problems and context.all_here()
    whole = _whole(text, stages, folder, ram_gib, out)
    found += _run(whole, [code for code in WHOLE if code != "MM605" or len(stages) > 1], "", skipped)
    level = "checkpoints" if here else "yaml"
    if deep and planner is None:
        skipped["MM701"] = "no planner was given"
    elif deep and planner and not any(finding.severity == "error" for finding in found):
        try:
            found += [_finding("MM701", message, "", "") for message in planner(text, folder)]
            level = "planner"
        except NotFound as missing:
            skipped["MM701"] = missing.message
    elif deep:
        skipped["MM701"] = "the recipe has errors already"
    findings = sorted(dict.fromkeys(found), key=lambda f: ("error", "warning", "note").index(f.severity))
    if findings:
        known = places(read)
        findings = [_placed(finding, place_of(finding.where, known)) for finding in findings]
    ok = all(finding.severity != "error" for finding in findings)
    return Validation(ok=ok, findings=findings, level=level, skipped=skipped)


def _stage(context: Context, prefix: str, skipped: dict[str, str]) -> list[Finding]:
    """The reader's problems first, then the checks. Checks run on what could be read, so that one pass shows everything."""
    method = context.document.get("merge_method")
    disguised = isinstance(method, str) and is_moe(method)
    problems = [] if disguised and is_moe_in_disguise(context.document) else context.problems
    found = [_finding(p.code, p.message, prefix + p.where, p.fix) for p in problems]
    found += _run(context, [code for code in CHECKS if code not in (*WHOLE, *PLANS)], prefix, skipped)
    return found if any(finding.severity == "error" for finding in found) else found + _run(context, PLANS, prefix, skipped)


def _run(context: Context, codes: Iterable[str], prefix: str, skipped: dict[str, str]) -> list[Finding]:
    found = []
    for code in codes:
        try:
            for place in run_check(code, context):
                where = f"{prefix}{place.where}".rstrip(".")
                found.append(_finding(code, place.message, where, place.fix))
        except Unknown as reason:
            skipped[code] = str(reason)
    return found


def _whole(
    text: str, stages: list[tuple[Recipe, list[Problem]]], folder: Path, ram_gib: float | None, out: Path | None
) -> Context:
    recipes = tuple(recipe for recipe, _ in stages)
    names = frozenset(recipe.name for recipe in recipes if recipe.name) if len(recipes) > 1 else frozenset()
    recipe = recipes[0] if len(recipes) == 1 else Recipe(kind="multi", stages=recipes, text=text)
    document: dict[str, Any] = {}
    return Context(document, recipe, [], folder, out=out, ram_gib=ram_gib, stage_names=names, stages=recipes)


def _finding(code: str, message: str, where: str, fix: str) -> Finding:
    rule = rules()[code]
    return Finding(code=code, severity=rule.severity, message=message, where=where, fix=fix or rule.fix)


def _placed(finding: Finding, place: tuple[int, int] | None) -> Finding:
    return finding.model_copy(update={"line": place[0], "column": place[1]}) if place else finding


KINDS: Final[dict[str, type[BadInput]]] = {
    "MM301": NotFound, "MM302": NotAModel, "MM401": NotAModel, "MM405": NotAModel, "MM304": Incompatible, "MM305": Incompatible,
    "MM306": Incompatible, "MM330": Incompatible, "MM403": Incompatible, "MM308": Malformed,
}  # fmt: skip
"""Code → the kind of error; MM1xx is `Malformed`, the rest `BadInput`."""


def require_valid(text: str, folder: Path | None = None) -> list[Finding]:
    """Warnings and notes of a recipe that may run. Raises for the first error, with how many more there are.

    Output, disk and memory are not looked at: whoever starts a job checks those against the job's own settings.
    """
    found = validate(text, folder=folder)
    errors = [finding for finding in found.findings if finding.severity == "error"]
    if not errors:
        return found.findings
    first = errors[0]
    kind = KINDS.get(first.code, Malformed if first.code.startswith("MM1") else BadInput)
    more = f" (and {len(errors) - 1} more; `model-merging validate` lists them)" if len(errors) > 1 else ""
    where = f" at {first.where}" if first.where else ""
    raise kind(f"{first.code}{where}: {first.message}{more}", first.fix, codes=[finding.code for finding in errors])
