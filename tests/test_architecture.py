"""The floors of the building: imports go down only, and the server stays light."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mcp_server"
HEAVY = {"torch", "transformers", "mergekit", "lm_eval", "ray", "peft", "datasets", "accelerate"}
FLOOR_OF_CORE = {
    "models": 0, "errors": 0, "paths": 0, "settings": 0, "policy": 0, "yaml_io": 0,
    "files": 0, "refs": 0, "safetensors_header": 0, "redaction": 0, "scratch": 0, "machine": 0,
    "catalog": 1, "checkpoint": 1, "recipe": 1, "provenance": 1, "suites": 1, "scenario_reader": 1,
    "lineage": 1, "recipe_refs": 1,
}  # fmt: skip
FACES = {"server", "cli", "docgen"}


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


def area_and_floor(module: str) -> tuple[str, float]:
    """'mcp_server.core.render.x' → ('core.render', 2)."""
    parts = module.split(".")[1:]
    if not parts:
        return "", 0
    if parts[0] in FACES:
        return parts[0], 4
    if parts[0] == "jobs":
        return "jobs", 3
    if parts[0] == "engine":
        return "engine", 2
    if parts[0] == "workers":
        return "workers", 5
    if parts[0] == "core" and len(parts) > 1:
        return f"core.{parts[1]}", FLOOR_OF_CORE.get(parts[1], 2)
    return parts[0], 0


@pytest.mark.parametrize(("module", "path"), modules())
def test_imports_go_down_only(module: str, path: Path) -> None:
    area, floor = area_and_floor(module)
    for name in imported(path):
        if not name.startswith("mcp_server."):
            continue
        target, below = area_and_floor(name)
        if target == area or not target:
            continue
        assert target != "workers", f"{module} imports a worker: {name}"
        assert below <= floor, f"{module} (floor {floor}) imports {name} (floor {below})"
        assert not (area in FACES and target in FACES), f"the faces {area} and {target} know each other"


@pytest.mark.parametrize(("module", "path"), modules())
def test_only_workers_import_the_heavy_libraries(module: str, path: Path) -> None:
    if area_and_floor(module)[0] != "workers":
        assert {name.split(".")[0] for name in imported(path)} & HEAVY == set(), module


@pytest.mark.parametrize("face", ["mcp_server.server", "mcp_server.cli"])
def test_a_face_starts_without_the_heavy_libraries(face: str) -> None:
    code = f"import json, sys, {face}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert {name.split(".")[0] for name in loaded} & (HEAVY | {"numba", "numpy"}) == set()


def test_no_file_grows_past_four_hundred_lines() -> None:
    long = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules()}
    assert {module: lines for module, lines in long.items() if lines > 400} == {}
