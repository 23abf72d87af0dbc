"""The floors of the building: imports go down only, and the server stays light."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mcp_server"
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"
HEAVY = {"torch", "transformers", "mergekit", "lm_eval", "ray", "peft", "datasets", "accelerate", "optuna"}
FLOORS = (
    {"errors", "schemas"},
    {"system"},
    {"formats", "catalog"},
    {"engine", "recompute"},
    {"steps"},
    {"jobs", "workers", "docgen"},
    {"server", "cli", "api"},
)  # from the ground up; docs/architecture.md draws them
FLOOR = {package: number for number, packages in enumerate(FLOORS) for package in packages}


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if "_data" in path.parts or "suites" in path.relative_to(PACKAGE).parts:
            continue
        found.append((".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts), path))
    return found


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package_of(module: str) -> str:
    """'mcp_server.steps.render.intent' → 'steps'."""
    return module.split(".")[1] if "." in module else ""


def imports_of_ours(path: Path) -> set[str]:
    return {name for name in imported(path) if name.startswith("mcp_server.")}


def test_every_package_stands_on_a_floor() -> None:
    assert {package_of(module) for module, _ in modules()} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize(("module", "path"), modules())
def test_imports_go_down_only(module: str, path: Path) -> None:
    package = package_of(module)
    for target in {package_of(name) for name in imports_of_ours(path)} - {package, ""}:
        assert target != "workers", f"{module} imports a worker"
        assert FLOOR[target] <= FLOOR[package], f"{module} ({package}) imports {target}, which stands above it"
        assert not {package, target} <= FLOORS[-1], "two faces know each other"
        assert {package, target} != {"engine", "recompute"}, f"{module}: what checks the engine shares nothing with it"


def test_no_files_import_each_other_in_a_circle() -> None:
    known = {module.removesuffix(".__init__"): path for module, path in modules()}
    needs = {
        module: {name for name in imports_of_ours(path) if name in known and name != module} for module, path in known.items()
    }
    # a package and its own files import each other by design: `__init__` re-exports
    needs = {m: {n for n in names if not m.startswith(f"{n}.")} for m, names in needs.items()}
    while free := [module for module, names in needs.items() if not names & needs.keys()]:
        for module in free:
            del needs[module]
    assert needs == {}


def test_no_package_holds_more_than_three_tenths_of_the_code() -> None:
    lines: dict[str, int] = {}
    for module, path in modules():
        lines[package_of(module)] = lines.get(package_of(module), 0) + len(path.read_text(encoding="utf-8").splitlines())
    largest = max(lines, key=lambda package: lines[package])
    assert lines[largest] <= 0.3 * sum(lines.values()), (largest, lines)


@pytest.mark.parametrize(("module", "path"), modules())
def test_only_workers_import_the_heavy_libraries(module: str, path: Path) -> None:
    if package_of(module) != "workers":
        assert {name.split(".")[0] for name in imported(path)} & HEAVY == set(), module


@pytest.mark.parametrize("face", ["mcp_server.server", "mcp_server.cli"])
def test_a_face_starts_without_the_heavy_libraries(face: str) -> None:
    code = f"import json, sys, {face}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert {name.split(".")[0] for name in loaded} & (HEAVY | {"numba", "numpy"}) == set()


def test_no_file_grows_past_four_hundred_lines() -> None:
    long = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules()}
    assert {module: lines for module, lines in long.items() if lines > 400} == {}


def test_the_documents_name_each_concept_where_it_is() -> None:
    table = [line for line in ARCHITECTURE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    named = [name for line in table for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", line.split("|")[2])]
    assert len(named) > 20
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(f"mcp_server.{module}"), attribute), name
