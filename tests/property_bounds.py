"""What every property test promises on top of its property: no input takes a second, and memory stays bounded.

Processor time is counted, not the clock: a shared machine stalls now and then. Not counted are Python's garbage collection, which
goes through all that the test process ever made, and the first input of a property, which pays for loading rules.
"""

from __future__ import annotations

import functools
import gc
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECONDS = 1.0
GROWTH_BYTES = 400_000_000
"""Over a whole property, hypothesis's own records of 5,000 inputs included."""


@dataclass
class Given:
    """What one property was given so far."""

    inputs: int = 0
    slowest_seconds: float = 0.0
    growth_bytes: int = 0


GIVEN: dict[str, Given] = {}


class Collections:
    """Processor seconds spent in garbage collection so far."""

    def __init__(self) -> None:
        self.seconds, self._began = 0.0, 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.process_time()
        else:
            self.seconds += time.process_time() - self._began


COLLECTIONS = Collections()


def busy_seconds() -> float:
    return time.process_time() - COLLECTIONS.seconds


def timed(inner: Callable[..., Any], given: Given) -> Callable[..., Any]:
    @functools.wraps(inner)
    def run(*arguments: Any, **more: Any) -> Any:
        began = busy_seconds()
        found = inner(*arguments, **more)
        seconds = busy_seconds() - began
        given.inputs += 1
        if given.inputs > 1:
            given.slowest_seconds = max(given.slowest_seconds, seconds)
            assert seconds < SECONDS, f"this input took {seconds:.2f} s"
        return found

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is None:
        return (yield)
    given, inner, before = GIVEN.setdefault(item.nodeid, Given()), handle.inner_test, resident_bytes()
    handle.inner_test = timed(inner, given)
    try:
        found = yield
    finally:
        handle.inner_test = inner
    given.growth_bytes = resident_bytes() - before
    assert given.growth_bytes < GROWTH_BYTES, f"the process grew by {given.growth_bytes:,} bytes in {given.inputs} inputs"
    return found


def resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A long run says how many inputs every property was given."""
    if os.environ.get("HYPOTHESIS_PROFILE") != "long" or not GIVEN:
        return
    terminalreporter.section("properties")
    for name, given in sorted(GIVEN.items()):
        cost = f"slowest {given.slowest_seconds:.3f} s, grew by {given.growth_bytes / 1e6:4.0f} MB"
        terminalreporter.write_line(f"{given.inputs:>8,} inputs, {cost}  {name}")
    terminalreporter.write_line(f"{sum(g.inputs for g in GIVEN.values()):>8,} inputs in {len(GIVEN)} properties")
