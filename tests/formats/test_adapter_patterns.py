"""rank_pattern and alpha_pattern: PEFT's own rule, and an answer in time for any number of patterns."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import Malformed, Unsupported
from mcp_server.formats.adapter_patterns import Patterns

peft_other = pytest.importorskip("peft.utils.other")
SECONDS = 2.0
PIECES = st.sampled_from(["layers", "0", "1", "q_proj", "q.proj", "self_attn", r"layers\.0", r"\d+", ".*proj", "(q|k)_proj"])
NAMES = st.lists(st.sampled_from(["layers", "0", "1", "q_proj", "q", "proj", "self_attn"]), min_size=1, max_size=5).map(".".join)


@given(st.lists(st.lists(PIECES, min_size=1, max_size=3).map(".".join), max_size=8, unique=True), NAMES)
def test_the_pattern_that_counts_is_the_one_that_peft_takes(patterns: list[str], name: str) -> None:
    taken = peft_other.get_pattern_key(patterns, name)
    table = {pattern: number for number, pattern in enumerate(patterns)}
    assert Patterns(table).value((name,), -1) == table.get(taken, -1)


def test_a_hundred_thousand_patterns_are_sorted_out_and_asked_in_time() -> None:
    names = [f"model.layers.{n}.self_attn.{part}_proj" for n in range(25_000) for part in "qkvo"]
    before = time.process_time()
    patterns = Patterns({name: n for n, name in enumerate(names)})
    assert [patterns.value((name,), None) for name in names[::1_000]] == list(range(0, 100_000, 1_000))
    assert time.process_time() - before < SECONDS


@pytest.mark.parametrize(
    ("table", "error", "words"),
    [
        ({f".*{n}x": 1 for n in range(300)}, Unsupported, "has 300 patterns, of which more than 200"),
        ({"." * n + "a" * (300 - n): 1 for n in range(300)}, Unsupported, "has 300 patterns, of which more than 200"),
        ({"(a+)+": 1}, Unsupported, "could take for ever"),
        ({"(": 1}, Malformed, "is none"),
        ([1], Malformed, "not a table"),
    ],
)
def test_patterns_that_cannot_be_answered_in_time_are_refused(table: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Patterns(table)
