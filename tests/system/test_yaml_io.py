"""YAML from strangers: what is refused, on which line, and that plain documents come through unchanged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import Malformed
from mcp_server.system.yaml_io import load_yaml, load_yaml_all

LAUGHS = "a: &a [1,2,3,4,5,6,7,8,9]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(10)
)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\na: 2", "line 2, column 1): the key 'a' appears twice (first on line 1)"),
        ("a:\n  - !!python/object/apply:os.system [ls]", "line 2, column 5): the tag"),
        ("a: !!str 3", "the tag 'tag:yaml.org,2002:str' is not allowed"),
        ("[" * 60 + "]" * 60, "nested deeper than 50 levels"),
        ("a: &x [*x]", "an alias refers to the value that it is part of"),
        ("a: &x 1\nb: [" + "*x, " * 101 + "1]", "more than 100 aliases"),
        (LAUGHS, "with its aliases expanded"),
        ("a: [1,\n b: 2", "line 3"),
        ("x: 2024-13-45", "a value that cannot be read: month"),
        ("x: " + "9" * 6000, "a value that cannot be read: Exceeds the limit"),
        ("x: \x00", "is not YAML"),
        ("x: \ud800", "surrogates not allowed"),
        ("---\na: 1\n---\nb: 2", "holds 2 YAML documents"),
        ("? [a]\n: 1", "keys are plain names"),
        ("x: " + "a" * 1_000_001, "1,000,004 bytes long"),
    ],
)
def test_a_hostile_document_is_refused_and_the_message_says_why(text: str, complaint: str) -> None:
    with pytest.raises(Malformed) as refused:
        load_yaml(text, "the recipe")
    assert refused.value.message.startswith("the recipe ")
    assert complaint in refused.value.message
    assert refused.value.next_step


def test_plain_documents_anchors_and_merge_keys_are_read() -> None:
    assert load_yaml("a: &q {w: 1}\nb: {<<: *q, c: 2.5}\nd: [x, null]", "t") == {
        "a": {"w": 1},
        "b": {"w": 1, "c": 2.5},
        "d": ["x", None],
    }


def test_an_empty_document_is_none() -> None:
    assert load_yaml("", "t") is None


def test_a_stream_of_documents_is_read_in_order() -> None:
    assert load_yaml_all("a: 1\n---\nb: 2", "t") == [{"a": 1}, {"b": 2}]


@given(st.text(max_size=200))
def test_any_text_is_either_read_or_refused_in_our_words(text: str) -> None:
    try:
        load_yaml_all(text, "t")
    except Malformed as refused:
        assert refused.message.startswith("t ")
