"""What the package says it needs is what it imports: nothing works here only because something else happened to install it."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BY_THEIR_PARENT = {
    "starlette": "mcp",
    "uvicorn": "mcp",
    "anyio": "mcp",
    "click": "typer",
    "torch": "mergekit",
    "tokenizers": "transformers",
    "huggingface-hub": "transformers",
    "datasets": "lm-eval",
    "markupsafe": "jinja2",
}
"""Not declared: the parent is, needs it by design, and pinning both would fight."""


def bare(requirement: str) -> str:
    name = requirement.split("[")[0]
    for sign in "<>=!~ ;":
        name = name.split(sign)[0]
    return name.lower().replace("_", "-")


EXTRAS = PROJECT["optional-dependencies"]
DECLARED = {bare(r) for r in [*PROJECT["dependencies"], *EXTRAS["ray"], *EXTRAS["gguf"]]}


def imported_packages() -> dict[str, str]:
    """Top-level name → a file that imports it."""
    found = {}
    for path in (ROOT / "mcp_server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {name: path for name, path in found.items() if name != "mcp_server" and name not in sys.stdlib_module_names}


@pytest.mark.parametrize(("name", "path"), sorted(imported_packages().items()))
def test_every_import_is_declared(name, path):
    owners = {bare(owner) for owner in packages_distributions().get(name, [name])}
    declared = owners & DECLARED or any(BY_THEIR_PARENT.get(owner) in DECLARED for owner in owners)
    assert declared, f"{path} imports {name} (of {owners}), which pyproject.toml does not declare"


def test_the_wheel_carries_everything_that_is_read_at_run_time():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["mcp_server"]
    assert wheel["force-include"].keys() >= {"templates", "skills", "examples/one_prompt/persona", "examples/one_prompt/tools"}


def test_the_entry_points_exist():
    assert PROJECT["scripts"] == {"model-merging": "mcp_server.cli:main", "model-merging-mcp": "mcp_server.server:main"}
