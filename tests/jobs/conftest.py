"""Merges by the fake worker, of a real tiny checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcp_server import jobs
from mcp_server.schemas.job import JobStatus, MergeRequest
from tests import tiny
from tests.fake_worker import FAKE, scripted

StartMerge = Callable[..., JobStatus]
StartJob = Callable[..., JobStatus]


@pytest.fixture
def merge(store: Path, tmp_path: Path) -> StartMerge:
    """merge(step, step, ..., out=, engine=, **request) starts a fake merge."""
    model = tmp_path / "model"
    if not model.exists():
        tiny.write_model(model)

    def start(*script: dict[str, Any], out: str = "out", engine: str = "mergekit", **request: Any) -> JobStatus:
        recipe = tiny.linear_recipe(model, script=list(script))
        wanted = MergeRequest(recipe=recipe, out=str(tmp_path / out), engine=engine, **request)  # type: ignore[arg-type]
        return jobs.start_merge(wanted, worker=FAKE)

    return start


@pytest.fixture
def job(store: Path) -> StartJob:
    """job(step, step, ...) starts a fake job that is no merge."""

    def start(*script: dict[str, Any], kind: str = "verify", **parameters: Any) -> JobStatus:
        request = scripted(kind, script=list(script), **parameters)  # type: ignore[arg-type]
        return jobs.start(request, worker=FAKE)

    return start
