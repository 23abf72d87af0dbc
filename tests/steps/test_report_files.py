"""What a report may replace, and what it does with files that are not what their names say."""

import json

import pytest

from mcp_server.errors import BadInput, OutputExists
from mcp_server.steps.report import write_report


@pytest.fixture
def out(tmp_path):
    (tmp_path / "merged").mkdir()
    return tmp_path / "merged"


@pytest.mark.parametrize("name", ["main.py", "config.json", "CLAUDE.md", "report"])
def test_a_report_has_a_name_of_its_kind(name, out, tmp_path):
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(BadInput, match=r"does not end in \.html"):
        write_report(out, tmp_path / name)
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


def test_only_an_earlier_report_is_replaced(out, tmp_path):
    (out / "mergekit_config.yml").write_text("merge_method: linear\n", encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text("<p>mine</p>", encoding="utf-8")
    with pytest.raises(OutputExists, match="not a report of ours"):
        write_report(out, page)
    assert page.read_text(encoding="utf-8") == "<p>mine</p>"
    page.unlink()
    write_report(out, page)
    write_report(out, page)
    assert "model-merging report" in page.read_text(encoding="utf-8")


def test_the_markdown_beside_it_follows_the_same_rule(out, tmp_path):
    evaluation = {"capabilities": {}, "verdict": "inconclusive"}
    (out / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExists):
        write_report(out, tmp_path / "README.html")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "README.html").exists()


ODD = {
    "sweep.json": (
        '{"candidates": [1]}',
        '{"candidates": [{}]}',
        '{"candidates": {"a": 1}}',
        "[]",
        "{",
        '{"candidates": [{"name": 3}]}',
    ),
    "comparison.json": (
        '{"sources": 3, "layers": {}}',
        '{"sources": {}, "layers": {"0": {"sources": [{}], "pairs": []}}}',
        "null",
    ),
    "replies.json": ("[]", '{"replies": 3}', "\x00"),
    "estimate.json": ('{"engines": []}', '{"engines": {"stream": {"peak_anon_bytes": "much"}}}', "\x00"),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in ODD.items() for text in texts])
def test_a_file_that_is_not_what_its_name_says_is_left_out_and_named(name, text, out):
    (out / name).write_text(text, encoding="utf-8")
    page = (write_report(out).html, (out / "report.html").read_text(encoding="utf-8"))[1]
    assert "Left out" in page and f"<li>{name}: " in page
