"""The page of codes is what the rules say."""

from pathlib import Path

from mcp_server.docgen import lint_page

PAGE = Path(__file__).parents[2] / "docs" / "lint.md"


def test_the_page_is_generated_from_the_rules() -> None:
    assert PAGE.read_text(encoding="utf-8") == lint_page(), "run: python -m mcp_server.docgen lint > docs/lint.md"
