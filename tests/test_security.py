"""What the code never does, read from the code itself."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mcp_server"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "_data" not in p.parts)
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_NAMES = {
    "os.system", "os.popen", "pickle.load", "pickle.loads", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "marshal.loads", "shelve.open", "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_shell_no_pickle_no_code_from_data(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        assert name not in FORBIDDEN_CALLS | FORBIDDEN_NAMES, f"line {node.lineno}: {name}"
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            assert not (keyword.arg == "shell" and value is not False), f"line {node.lineno}: shell="
            assert not (keyword.arg == "trust_remote_code" and value is True), f"line {node.lineno}: trust_remote_code=True"


@pytest.mark.parametrize("path", [p for p in MODULES if "workers" not in p.parts], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_processes_are_made_in_one_place(path: Path) -> None:
    """Only jobs (and workers, for their own tools) start processes."""
    if "jobs" in path.relative_to(PACKAGE).parts:
        return
    imports = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not imports & {"subprocess", "multiprocessing", "pty"}, path
