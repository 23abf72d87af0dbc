"""Replies against expected answers."""

from typing import Any

import pytest

from mcp_server.errors import Malformed
from mcp_server.formats.own_data import Example, Match, Message
from mcp_server.formats.suites import list_suites
from mcp_server.steps.evaluate import matching
from mcp_server.steps.evaluate.listing import suite_list
from mcp_server.steps.evaluate.matching import detector, matches


def example(match: Match, *expected: str) -> Example:
    return Example(id="1", messages=[Message(role="user", content="q")], expected=list(expected), match=match, max_tokens=8)


@pytest.mark.parametrize(
    ("match", "expected", "reply", "right"),
    [
        ("exact", ["four"], "  four\n", True),
        ("exact", ["four"], "four.", False),
        ("exact", ["4", "four"], "four", True),
        ("contains", ["Paris"], "It is paris, of course", True),
        ("contains", ["Paris"], "London", False),
        ("regex", [r"^\d+$"], "42", True),
        ("regex", [r"^\d+$"], "42 or so", False),
        ("json", ['{"a": 1, "b": [true]}'], '{"b": [true], "a": 1.0}', True),
        ("json", ['{"a": 1}'], '{"a": true}', False),
        ("json", ['{"a": 1}'], '```json\n{"a": 1}\n```', True),
        ("json", ['{"a": 1}'], 'Sure: {"a": 1}', False),
        ("json", ["null"], "nothing", False),
        ("json", ["[]"], "[" * 100_000, False),
    ],
)
def test_a_reply_is_right_or_wrong(match: Match, expected: list[str], reply: str, right: bool) -> None:
    assert matches(reply, example(match, *expected)) is right


def test_a_pattern_that_does_not_end_is_named_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "PATTERN_SECONDS", 0.1)
    with pytest.raises(Malformed, match="took more than"):
        matches("a" * 40 + "b", example("regex", "(a+)+$"))
    assert matches("aaa", example("regex", "(a+)+$"))


@pytest.mark.parametrize(
    ("examples", "replies"),
    [
        ([example("json", "{}"), example("json", "[]")], {'{"a": 1}': True, "Hello": False}),
        ([example("contains", "got this"), example("contains", "got this")], {"You've got this!": True, "Hello": False}),
        ([example("exact", "a"), example("exact", "b")], None),
        ([example("contains", "a"), example("contains", "b")], None),
    ],
)
def test_what_all_answers_share_shows_a_behaviour(examples: list[Example], replies: dict[str, bool] | None) -> None:
    found = detector(examples)
    shown: Any = None if found is None else {reply: found(reply) for reply in replies or {}}
    assert shown == replies


def test_every_shipped_suite_is_listed_with_its_prompts_and_minutes() -> None:
    found = {suite.name: suite for suite in suite_list().suites}
    assert set(found) == set(list_suites())
    assert found["task_api_tools"].prompts == {"dev": 100, "test": 200}
    assert found["perplexity"].prompts == {"dev": 6, "test": 10}
    assert all(0 < (minutes or 0) < 60 for suite in found.values() for minutes in suite.minutes.values())
