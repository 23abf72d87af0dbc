"""Scenario text or tables → `Scenario`, with every fault named in the writer's words.

A misspelt field would be a fact that never reaches a rule, so unknown fields are errors with what was probably meant, and names
that refer to sources (`between`, `favour`, `cross_context`, `own_context`) must exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mcp_server.catalog.signals import source_names
from mcp_server.errors import Malformed, did_you_mean
from mcp_server.formats.refs import anchor_ref
from mcp_server.schemas.evidence import Evaluation
from mcp_server.schemas.faults import explain
from mcp_server.schemas.plan import Plan
from mcp_server.schemas.scenario import Favour, Scenario
from mcp_server.system.yaml_io import load_yaml, read_text

M = TypeVar("M", bound=BaseModel)


def read_scenario(scenario: Path | str | dict[str, Any]) -> Scenario:
    """A scenario from a file (`Path`), YAML text, or a table. Raises `NotFound` or `Malformed`."""
    data, what = _data(scenario, "the scenario")
    read = scenario_from(data, what)
    return _anchored(read, scenario.resolve().parent) if isinstance(scenario, Path) else read


def with_cross_context(scenario: Scenario, file: Path) -> Scenario:
    """The scenario with what `evaluate --cross -o FILE` measured; its sources must go by the scenario's names."""
    data, what = _data(file, "the evaluation")
    found = _checked(Evaluation, data, what)
    if not found.cross_context:
        raise Malformed(f"{file} holds no cross-context check", "measure with `model-merging evaluate --cross -o FILE`")
    measured = {"cross_context": found.cross_context, "own_context": found.own_context}
    scenario = scenario.model_copy(update=measured)
    check_names(scenario, str(file))
    return scenario


def read_plan(plan: Path | str | dict[str, Any]) -> Plan:
    """A plan as `recommend -o` saved it, or as the tool returned it. Raises `NotFound` or `Malformed`."""
    data, what = _data(plan, "the plan")
    return _checked(Plan, data, what)


def scenario_from(data: Any, what: str = "the scenario") -> Scenario:
    """A scenario from parsed YAML or JSON; None and {} are the empty scenario, in which all is unknown."""
    scenario = _checked(Scenario, {} if data is None else data, what)
    check_names(scenario, what)
    return scenario


def _data(given: Path | str | dict[str, Any], what: str) -> tuple[Any, str]:
    if isinstance(given, dict):
        return given, what
    if isinstance(given, Path):
        return load_yaml(read_text(given, what), str(given)), str(given)
    return load_yaml(given, what), what


def _checked(model: type[M], data: Any, what: str) -> M:
    if not isinstance(data, dict):
        kind = {"str": "a piece of text", "list": "a list"}.get(type(data).__name__, f"a {type(data).__name__}")
        raise Malformed(f"{what} is {kind}, a table of fields is expected", f"known fields: {', '.join(model.model_fields)}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = _unique(explain(error, model))
        more = f" ({len(faults) - 5} more)" if len(faults) > 5 else ""
        raise Malformed(f"{what}: " + "; ".join(faults[:5]) + more, "correct the fields named") from error


def _anchored(scenario: Scenario, folder: Path) -> Scenario:
    """Refs of a file count from its folder; made absolute, they mean the same wherever the plan is used."""

    def anchored(ref: str | None) -> str | None:
        return ref if ref is None or ref.lower() == "none" else anchor_ref(ref, folder)

    sources = scenario.sources
    if sources is not None:
        sources = [s.model_copy(update={"ref": anchored(s.ref), "base": anchored(s.base)}) for s in sources]
    return scenario.model_copy(update={"sources": sources, "base_model": anchored(scenario.base_model)})


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def check_names(scenario: Scenario, what: str = "the scenario") -> None:
    """Raise `Malformed` unless every name that refers to a source is one."""
    given = [source.name for source in scenario.sources or [] if source.name]
    if twice := sorted({name for name in given if given.count(name) > 1}):
        raise Malformed(f"{what}: two sources are called {twice[0]!r}", "give each source a name of its own")
    names = source_names(scenario)
    used = [(f"relations[{i}].between", name) for i, r in enumerate(scenario.relations or []) for name in r.between]
    if isinstance(scenario.goal, Favour):
        used.append(("goal.favour", scenario.goal.favour))
    used += [("cross_context", name) for name in scenario.cross_context or {}]
    used += [("own_context", name) for name in scenario.own_context or {}]
    for where, name in used:
        if name not in names:
            hint = did_you_mean(name, names) or f" Sources: {', '.join(names) or 'none'}."
            raise Malformed(f"{what}: {where} names {name!r}, which is no source.{hint}", "name a source of the scenario")
    for i, relation in enumerate(scenario.relations or []):
        if relation.between[0] == relation.between[1]:
            raise Malformed(f"{what}: relations[{i}].between names {relation.between[0]!r} twice", "name two sources")
