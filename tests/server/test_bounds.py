"""Results that are too long are cut where it costs least, stay valid, and lose nothing: the whole is in a file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.schemas.validation import Finding, Validation
from mcp_server.server.bounds import MAX_CHARACTERS, compact, shorten
from mcp_server.server.checked import checked
from mcp_server.server.inputs import READS


def findings(count: int) -> Validation:
    listed = [Finding(code=f"MM{n:03}", severity="error", message="x" * 80, where=f"models[{n}]") for n in range(count)]
    return Validation(ok=False, findings=listed, level="yaml")


def many_findings() -> Validation:
    """Returns more findings than fit."""
    return findings(500)


def test_what_fits_is_untouched():
    data = findings(3).model_dump(mode="json")
    assert shorten(data, 8_000) == (data, [])


def test_the_longest_list_loses_its_tail_and_the_cut_is_told():
    data = findings(500).model_dump(mode="json")
    shorter, cuts = shorten(data, 8_000)
    kept = shorter["findings"]
    assert len(compact(shorter)) <= 8_000
    assert kept == data["findings"][: len(kept)]
    assert cuts == [f"findings: {len(kept)} of 500 entries"]


def test_fields_that_the_next_call_needs_are_never_cut():
    data = {"recipe": "r" * 5_000, "scenario": {"sources": ["s" * 500] * 4}, "warnings": ["w" * 1_000] * 9}
    shorter, _cuts = shorten(data, 8_000)
    assert (shorter["recipe"], shorter["scenario"]) == (data["recipe"], data["scenario"])
    assert len(shorter["warnings"]) < 9


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=400),
        lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.sampled_from(["a", "b", "values", "detail"]), inner),
        max_leaves=60,
    )
)
def test_shortening_ends_and_never_adds(content):
    data = {"content": content}
    shorter, _cuts = shorten(data, 300)
    assert len(compact(shorter)) <= len(compact(data))
    assert shorter.keys() == data.keys()


@pytest.mark.anyio
async def test_a_tool_answers_short_and_names_the_file_with_all_of_it(store):
    result = await checked(many_findings, "Many", READS).run({}, None, convert_result=True)
    shown, note = (block.text for block in result.content)
    assert len(shown) + len(note) <= MAX_CHARACTERS
    assert json.loads(shown) == result.structured_content
    assert Validation.model_validate(result.structured_content).ok is False
    whole = json.loads((store / "results" / note.rsplit("/", 1)[1]).read_text(encoding="utf-8"))
    assert whole == findings(500).model_dump(mode="json")


@pytest.fixture
def anyio_backend():
    return "asyncio"
