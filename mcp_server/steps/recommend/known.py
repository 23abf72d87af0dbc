"""Measurements of exactly these sources that the job store has: the newest comparison, the newest cross-context check."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mcp_server.catalog.signals import source_names
from mcp_server.errors import Malformed, MergingError
from mcp_server.formats.refs import resolve_ref
from mcp_server.formats.tensors import read_json
from mcp_server.schemas.scenario import Scenario
from mcp_server.steps.recommend.measure import Figures, from_comparison
from mcp_server.system import paths


def comparison_for(scenario: Scenario, file: Path | None = None) -> Figures | None:
    """What `compare` measured, by the scenario's names; None when there is no comparison of these sources on this base.

    Raises `NotFound` or `Malformed` for a file that was given and is none.
    """
    if file is not None:
        found = _figures(read_json(file), scenario)
        if found is None:
            raise Malformed(f"{file} compares other sources than the scenario's", "compare these sources, with -o FILE")
        return found
    for kept in _kept():
        try:
            found = _figures(read_json(kept), scenario)
        except MergingError:
            continue
        if found is not None:
            return found
    return None


def with_known_cross(scenario: Scenario) -> Scenario:
    """The scenario with what an evaluation of its sources in each other's contexts found, where it says nothing itself."""
    if scenario.cross_context is not None:
        return scenario
    named = {_place(s.ref): n for n, s in zip(source_names(scenario), scenario.sources or [], strict=True) if s.ref}
    for folder in _newest("evaluate"):
        try:
            found = read_json(folder / "result.json")
            rates = dict(found.get("cross_context") or {})
            names = {label: named.get(_place(str(found["models"][label]).rpartition("+")[2])) for label in rates}
        except (MergingError, KeyError, TypeError, ValueError):
            continue
        if rates and named and None not in names.values() and set(names.values()) == set(named.values()):
            said = {str(names[label]): dict(row) for label, row in rates.items()}
            own = {
                str(names[label]): str(context)
                for label, context in dict(found.get("own_context") or {}).items()
                if label in names
            }
            return scenario.model_copy(update={"cross_context": said, "own_context": own or None})
    return scenario


def _kept() -> Iterable[Path]:
    return [file for folder in _newest("compare") if (file := folder / "comparison.json").is_file()]


def _newest(kind: str) -> list[Path]:
    """The folders of finished jobs of a kind, newest first."""
    jobs = sorted(paths.jobs_dir().glob(f"{kind}-*"), key=lambda folder: folder.name.partition("-")[2], reverse=True)
    return [folder for folder in jobs if (folder / "result.json").is_file()]


def _figures(details: dict[str, Any], scenario: Scenario) -> Figures | None:
    """The figures, when the comparison is of every source of the scenario, on its base."""
    named = {_place(s.ref): n for n, s in zip(source_names(scenario), scenario.sources or [], strict=True) if s.ref}
    there = {name: _place(str(ref).rpartition("+")[2]) for name, ref in dict(details.get("sources") or {}).items()}
    same_base = scenario.base_model is None or _place(str(details.get("base"))) == _place(scenario.base_model)
    if not named or not same_base or set(there.values()) != set(named):
        return None
    try:
        return from_comparison(details, {name: named[place] for name, place in there.items()})
    except (KeyError, TypeError, ValueError):
        return None


def _place(ref: str) -> str:
    try:
        return resolve_ref(ref, Path.cwd())
    except MergingError:
        return ref
