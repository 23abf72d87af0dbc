"""Is a reply the expected answer? One rule a kind of match, in plain Python, for people's own data."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from mcp_server.errors import Malformed
from mcp_server.formats.own_data import Example

PATTERN_SECONDS: Final = 5.0
"""Patterns with repeats inside repeats take longer than anybody waits, on replies of a few dozen letters."""


def matches(reply: str, example: Example) -> bool:
    """exact: the whole reply, outer spaces aside. contains: anywhere, letter case aside. regex: found anywhere. json: equal
    values, whatever their order and spacing; a code fence may stand around the value, nothing else.

    Raises `ValueError` for choice, which likelihoods decide, and `Malformed` for a pattern that does not end.
    """
    text = reply.strip()
    if example.match == "exact":
        return any(text == wanted.strip() for wanted in example.expected)
    if example.match == "contains":
        return any(wanted.casefold() in reply.casefold() for wanted in example.expected)
    if example.match == "regex":
        return any(_found(wanted, reply, example.id) for wanted in example.expected)
    if example.match == "json":
        found = parsed(text)
        return found is not None and same(found[0], json.loads(example.expected[0]))
    raise ValueError("a choice is decided by likelihoods, not by a reply")


def same(one: Any, other: Any) -> bool:
    """Equal JSON values: 1 is 1.0 and not true, which Python alone would say."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def parsed(text: str) -> tuple[Any] | None:
    """The JSON value that the whole text is, in a tuple because null is one; null when it is none."""
    if fenced := re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text.strip(), re.DOTALL):
        text = fenced.group(1)
    try:
        return (json.loads(text),)
    except (ValueError, RecursionError):  # a model that repeats itself opens brackets without end
        return None


def _found(pattern: str, text: str, name: str) -> bool:
    """Whether the pattern is found, within `PATTERN_SECONDS` where the system can interrupt (not off the main thread)."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return re.search(pattern, text) is not None

    def give_up(*_: Any) -> None:
        raise Malformed(
            f"{name}: the pattern {pattern[:80]!r} took more than {PATTERN_SECONDS:g} s on one reply",
            "write it without repeats inside repeats, such as (a+)+",
        )

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATTERN_SECONDS)
    try:
        return re.search(pattern, text) is not None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def detector(examples: Sequence[Example]) -> Callable[[str], bool] | None:
    """What shows the behaviour that a file trains, for the cross-context check: JSON where all answers are JSON, or the one
    text or pattern that all answers share. Null where the answers have nothing in common."""
    kinds = {example.match for example in examples}
    if kinds == {"json"}:
        return lambda reply: (found := parsed(reply.strip())) is not None and isinstance(found[0], dict | list)
    answers = {tuple(example.expected) for example in examples}
    if kinds <= {"contains", "regex"} and len(kinds) == 1 and len(answers) == 1:
        return lambda reply: matches(reply, examples[0])
    return None
