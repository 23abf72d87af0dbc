"""A merge reads each text and each header at most twice: once where it is asked for, once in the worker that does it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcp_server import jobs
from mcp_server.formats import refs, safetensors
from mcp_server.formats.recipe import read
from mcp_server.jobs import store as stored
from mcp_server.jobs.launch import check_sweep
from mcp_server.schemas.job import MergeRequest, SweepRequest
from mcp_server.steps.handles import plan_text
from mcp_server.steps.recommend import recommend
from mcp_server.steps.scenario import scenario_from
from mcp_server.steps.validate import validate
from mcp_server.system import remembered
from mcp_server.system.policy import Policy
from tests import tiny
from tests.engine.synthetic import run
from tests.fake_worker import FAKE


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], Counter[str]]]:
    """Texts that were parsed as YAML recipes, and how often each file's header was; files count as settled at once."""
    texts: list[str] = []
    headers: Counter[str] = Counter()
    parse, header = read.read_documents, safetensors._parse

    def parsing(text: str, what: str) -> Any:
        texts.append(text)
        return parse(text, what)

    def heading(file: Path, raw: bytes) -> Any:
        headers[str(file)] += 1
        return header(file, raw)

    monkeypatch.setattr(read, "read_documents", parsing)
    monkeypatch.setattr(safetensors, "_parse", heading)
    monkeypatch.setattr(remembered, "SETTLED_NS", -(10**18))
    safetensors._remembered.clear()
    read._remembered.clear()
    yield texts, headers
    read._remembered.clear()


@pytest.mark.parametrize("absolute", [True, False])
def test_whoever_starts_a_merge_and_the_worker_read_once_each(
    store: Path, tmp_path: Path, counted: tuple[list[str], Counter[str]], absolute: bool
) -> None:
    texts, headers = counted
    models = [tiny.write_model(tmp_path / name, seed=n) for n, name in enumerate(("one", "two"), 1)]
    recipe = tiny.linear_recipe(*(models if absolute else [model.name for model in models]))
    validate(recipe, folder=tmp_path)
    request = MergeRequest(recipe=recipe, out=str(tmp_path / "out"), recipe_folder=str(tmp_path))
    started = jobs.start_merge(request, worker=FAKE)
    assert (started.engine, len(texts)) == ("stream", 1)
    assert set(headers.values()) == {1}

    texts.clear()
    headers.clear()
    read._remembered.clear()
    safetensors._remembered.clear()
    handed = json.loads((stored.find(started.job_id) / "request.json").read_text(encoding="utf-8"))["parameters"]["recipe"]
    run(handed, tmp_path / "made" / "out")
    assert len(texts) == 1
    assert {name: count for name, count in headers.items() if "made" not in name} == {
        str(model / "model.safetensors"): 1 for model in models
    }


def test_a_header_is_read_again_when_the_file_is_another(tmp_path: Path, counted: tuple[list[str], Counter[str]]) -> None:
    _, headers = counted
    model = tiny.write_model(tmp_path / "model") / "model.safetensors"
    first = safetensors.read_header(model)
    assert safetensors.read_header(model) is first
    tiny.write_model(tmp_path / "other", seed=2)
    (tmp_path / "other" / "model.safetensors").replace(model)
    safetensors.read_header(model)
    assert headers == {str(model): 2}


def test_a_sweep_resolves_each_model_twice_however_many_candidates_name_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved: Counter[str] = Counter()
    anchor = refs.anchor_ref
    monkeypatch.setattr(refs, "anchor_ref", lambda ref, start: resolved.update([ref]) or anchor(ref, start))
    names = {name: str(tiny.write_model(tmp_path / name, seed)) for seed, name in enumerate(("base", "code", "chat"))}
    sources = [{"name": name, "ref": names[name], "kind": "full", "capability": name} for name in ("code", "chat")]
    scenario = {"sources": sources, "base_model": names["base"]}
    plan = tmp_path / "plan.yaml"
    plan.write_text(plan_text(recommend(scenario_from(scenario))), encoding="utf-8")
    request = SweepRequest(plan=str(plan), out=str(tmp_path / "swept"), suites=["task_api_tools"])
    resolved.clear()
    reads: set[str] = set()
    check_sweep(request, Policy(), reads)
    assert reads == set(names.values())
    assert max(resolved[path] for path in names.values()) <= 2  # where it is rendered and where it is checked
