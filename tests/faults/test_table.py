"""The fault table of docs/reliability.md names tests that exist, and says truly which are slow."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCUMENTS = [TESTS.parent / "docs" / name for name in ("reliability.md", "security.md")]
NAMED = re.compile(r"(?:(slow): )?`(?:tests/)?((?:(?:engine|faults|fuzz|jobs|server|steps|system)/)?\w+\.py)(?:::(\w+))?`")


def functions(file: Path) -> dict[str, bool]:
    """Test → whether it is marked slow, by itself or with its module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    all_slow = any(isinstance(n, ast.Assign) and "pytest.mark.slow" in ast.unparse(n) for n in tree.body)
    return {
        node.name: all_slow or any(ast.unparse(d) == "pytest.mark.slow" for d in node.decorator_list)
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    }


def test_every_test_that_the_tables_name_exists_and_is_as_slow_as_they_say():
    rows = 0
    for document in DOCUMENTS:
        for line in document.read_text(encoding="utf-8").splitlines():
            for slow, name, test in NAMED.findall(line) if line.startswith("| ") else ():
                file = TESTS / name
                assert file.is_file(), f"{document.name} names {name}"
                rows += 1
                if test:
                    assert test in functions(file), f"{document.name} names {name}::{test}"
                    assert functions(file)[test] == bool(slow), f"{document.name}: is {test} slow?"
    assert rows > 60
