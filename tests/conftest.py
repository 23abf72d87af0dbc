"""What every test may use: hypothesis profiles, and a store of jobs of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.property_bounds import pytest_runtest_call, pytest_terminal_summary

__all__ = ["pytest_runtest_call", "pytest_terminal_summary"]

# No test asks a hub of the internet: this port refuses at once. Tests with a hub of their own on loopback name it themselves.
os.environ.setdefault("HF_ENDPOINT", "http://127.0.0.1:9")

# A shell starts its background processes with Ctrl-C ignored, and they pass that on: tests that press Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# `make test` uses "quick", `make test-full` sets HYPOTHESIS_PROFILE=long. No deadline: a shared machine stalls now and then;
# `property_bounds` holds every input to a second of processor time instead.
_CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("quick", max_examples=100, derandomize=True, **_CALM)
settings.register_profile("long", max_examples=5_000, print_blob=True, **_CALM)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty store, used by this test alone; whatever still runs in it at the end is cancelled."""
    home = tmp_path / "home"
    monkeypatch.setenv("MODEL_MERGING_HOME", str(home))
    yield home
    from mcp_server import jobs
    from mcp_server.jobs import store as stored

    for _ in range(3):
        for folder in stored.active():
            jobs.cancel(folder.name)
