"""Next steps that lie below both faces are commands; an agent reads them as calls of its tools."""

from __future__ import annotations

import pytest

from mcp_server import cli
from mcp_server.server.tools import all_tools
from mcp_server.server.words import CALLS, in_tool_words, told_in_tool_words

TOOLS = {tool.name: tool for tool in all_tools()}


@pytest.mark.parametrize(
    ("said", "call"),
    [
        ("verify it: model-merging verify /tmp/out", 'verify it: verify_merge(out="/tmp/out")'),
        ("with `model-merging evaluate --cross -o FILE`", "with evaluate_merge(cross=true)"),
        (
            "model-merging evaluate OUT --suite SUITE (with --cross: leaks)",
            "evaluate_merge(out=OUT, suites=[SUITE]) (with --cross: leaks)",
        ),
        (
            "resume it: model-merging resume merge-20261127-113552-2mb5",
            'resume it: resume_merge(job_id="merge-20261127-113552-2mb5")',
        ),
        ("fetch: model-merging fetch demo:smollm2-135m-instruct", 'fetch: fetch_model(ref="demo:smollm2-135m-instruct")'),
        ("model-merging fetch org/model@main", 'fetch_model(ref="org/model@main")'),
        ("model-merging compare BASE REF REF -o OUT", "compare_models(base=BASE, refs=[REF, REF])"),
        ("see `model-merging suites`; a file of your own", "see list_suites(); a file of your own"),
        ("run `model-merging check`, which lists", "run `model-merging check`, which lists"),
        ("(`model-merging validate` lists them)", "(validate_config() lists them)"),
        ("model-merging validate RECIPE --deep", "validate_config(recipe=RECIPE)"),
        ("model-merging diagnose ./merged.", 'diagnose_merge(out="./merged").'),
        ("merging models is fun", "merging models is fun"),
    ],
)
def test_a_command_becomes_the_call_that_does_the_same(said: str, call: str) -> None:
    assert in_tool_words(said) == call


def test_every_call_is_of_a_tool_that_has_these_arguments() -> None:
    for tool, names in CALLS.values():
        assert set(names) <= set(TOOLS[tool].parameters["properties"]), tool


def test_every_command_with_a_tool_is_known() -> None:
    commands = {info.name or info.callback.__name__ for info in cli.app.registered_commands if info.callback}
    assert set(CALLS) <= commands


def test_documents_are_never_rewritten() -> None:
    text = "# made by model-merging merge OUT"
    assert told_in_tool_words({"recipe": text, "next": ["model-merging jobs"]}) == {"recipe": text, "next": ["list_merges()"]}
