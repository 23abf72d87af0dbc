"""Lint a recipe: run every check that can be decided with what is here, and say which could not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from mcp_server.errors import BadInput, Incompatible, Malformed, NotAModel, NotFound
from mcp_server.formats.hub.copies import looking
from mcp_server.formats.recipe import Read, read_text
from mcp_server.formats.recipe.places import place_of
from mcp_server.schemas.base import OutputFormat
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
from mcp_server.system.collecting import uncollected

Planner = Callable[[str, Path], list[str]]
"""Recipe text and folder → what mergekit's planner refuses, in its own words; [] when it accepts. May raise `NotFound`."""

WHOLE = ("MM501", "MM502", "MM503", "MM504", "MM505", "MM605")
"""Decided once for the whole recipe, not for each stage."""
PLANS = ("MM330", "MM331")
"""Asked last, and only when nothing else is wrong: they say in other words what the other checks have said."""


@looking()
@uncollected()
def validate(
    text: str,
    *,
    folder: Path | None = None,
    ram_gib: float | None = None,
    out: Path | None = None,
    output_format: OutputFormat | None = None,
    deep: bool = False,
    planner: Planner | None = None,
) -> Validation:
    """Every finding about a recipe. `folder` is what its relative paths are relative to (default: the working directory).

    `ram_gib`, `out` and `output_format` add the checks of resources and of how the result is stored. `deep` also asks mergekit's
    own planner, through `planner`, which runs it in a process of its own (this package starts none).
    Never raises for what a recipe says: broken YAML is a finding too.
    """
    folder = (folder or Path.cwd()).resolve()
    try:
        read = read_text(text)
    except Malformed as error:
        line, column = error.details.get("line"), error.details.get("column")
        broken = _finding("MM101", error.message, "", error.next_step).model_copy(update={"line": line, "column": column})
        return Validation(ok=False, findings=[broken], level="yaml")
    if read.refused_whole:
        found = [_finding(p.code, p.message, p.where, p.fix) for p in read.problems]
        return Validation(ok=False, findings=_ordered(found, read), level="yaml")
    stages = read.stages
    names = frozenset(r.name for r, _ in stages if r.name) if len(stages) > 1 else frozenset()
    found = []
    skipped: dict[str, str] = {}
    here = True
    for number, (recipe, problems) in enumerate(stages):
        value = read.documents[number].value if read.documents else None
        table = value if isinstance(value, dict) else {}
        homes = read.documents[number].homes if read.documents else frozenset()
        context = Context(table, recipe, problems, folder, homes, stage_names=names)
        prefix = f"stages[{number}]." if len(stages) > 1 else ""
        found += _stage(context, prefix, skipped)
        here = here and not problems and context.all_here()
    whole = Context(
        {},
        read.recipe,
        (),
        folder,
        out=out,
        ram_gib=ram_gib,
        output_format=output_format,
        stage_names=names,
        stages=tuple(r for r, _ in stages),
    )
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
    findings = _ordered(found, read)
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


def _finding(code: str, message: str, where: str, fix: str) -> Finding:
    rule = rules()[code]
    return Finding(code=code, severity=rule.severity, message=message, where=where, fix=fix or rule.fix)


def _ordered(found: list[Finding], read: Read) -> list[Finding]:
    """Each finding once, with its line and column; errors first."""
    findings = sorted(dict.fromkeys(found), key=lambda f: ("error", "warning", "note").index(f.severity))
    placed = [(finding, place_of(finding.where, read.documents)) for finding in findings]
    return [f.model_copy(update={"line": at[0], "column": at[1]}) if at else f for f, at in placed]


KINDS: Final[dict[str, type[BadInput]]] = {
    "MM301": NotFound, "MM302": NotAModel, "MM401": NotAModel, "MM405": NotAModel, "MM304": Incompatible, "MM305": Incompatible,
    "MM306": Incompatible, "MM330": Incompatible, "MM403": Incompatible, "MM308": Malformed,
}  # fmt: skip
"""Code → the kind of error; MM1xx is `Malformed`, the rest `BadInput`."""


def require_valid(text: str, folder: Path | None = None, *, base_may_be_absent: bool = False) -> list[Finding]:
    """Warnings and notes of a recipe that may run. Raises for the first error, with how many more there are.

    Output, disk and memory are not looked at: whoever starts a job checks those against the job's own settings. Where the base
    may be absent (an adapter as output needs none), a source that is not here is left to the engine: it knows what it needs.
    """
    found = validate(text, folder=folder)
    excused = ("MM301",) if base_may_be_absent else ()
    errors = [finding for finding in found.findings if finding.severity == "error" and finding.code not in excused]
    if not errors:
        return found.findings
    first = errors[0]
    kind = KINDS.get(first.code, Malformed if first.code.startswith("MM1") else BadInput)
    more = f" (and {len(errors) - 1} more; `model-merging validate` lists them)" if len(errors) > 1 else ""
    where = f" at {first.where}" if first.where else ""
    raise kind(f"{first.code}{where}: {first.message}{more}", first.fix, codes=[finding.code for finding in errors])
