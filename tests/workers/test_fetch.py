"""Fetching from a hub that serves on loopback: whole, cut short, refused, wrong, too large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcp_server import jobs
from mcp_server.formats.provenance import read_provenance
from mcp_server.formats.refs import cached_snapshot
from mcp_server.schemas.job import MergeRequest
from tests.engine.synthetic import low_rank, random_tensors, write_adapter, write_model
from tests.hub import COMMIT, Hub, serving

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    write_model(tmp_path / "base", random_tensors(0), "float32", shards=2)
    write_adapter(tmp_path / "persona", low_rank(3, {UP: (16, 12)}, 2))
    config = tmp_path / "persona" / "adapter_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": "acme/base"}), encoding="utf-8"
    )
    hub = Hub({})
    hub.add("acme/base", tmp_path / "base")
    hub.add("acme/persona", tmp_path / "persona")
    with serving(hub):
        yield hub


def fetch(hub: Hub, folder: Path, ref: str, *, file: str | None = None, **environment: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, result or error, and everything that was printed."""
    job = folder / "job"
    job.mkdir(exist_ok=True)
    (job / "request.json").write_text(json.dumps({"kind": "fetch", "parameters": {"ref": ref, "file": file}}), encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MODEL_MERGING"))}
    ended = subprocess.run(
        [sys.executable, "-m", "mcp_server.workers.fetch", str(job)],
        env=kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    told = job / ("result.json" if ended.returncode == 0 else "error.json")
    return ended.returncode, json.loads(told.read_text(encoding="utf-8")), ended.stdout + ended.stderr


def test_an_adapter_brings_its_base_and_both_are_found_by_their_ids(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found, said = fetch(hub, tmp_path, "acme/persona")
    assert (code, found["kind"], found["revision"], found["base"]["ref"]) == (0, "adapter", COMMIT, "acme/base"), said
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    base = cached_snapshot("acme/base")
    assert base == Path(found["base"]["folder"])
    assert {p.name: p.read_bytes() for p in base.iterdir()} == hub.repositories["acme/base"]
    hub.requests.clear()
    _, again, _ = fetch(hub, tmp_path, "acme/persona")
    assert (again["downloaded_bytes"], again["base"]["downloaded_bytes"]) == (0, 0)
    assert [line for line in hub.requests if line.startswith("GET") and "resolve" in line] == []


def test_a_connection_that_is_cut_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.faults.cut = 3
    code, found, said = fetch(hub, tmp_path, "acme/base")
    assert code == 0, said
    files = {p.name: p.read_bytes() for p in Path(found["folder"]).iterdir()}
    assert (files, hub.faults.cut) == (hub.repositories["acme/base"], 0)


def test_too_many_requests_are_waited_for(hub: Hub, tmp_path: Path) -> None:
    hub.faults.too_many_requests = 2
    code, found, said = fetch(hub, tmp_path, "acme/base")
    assert (code, found["files"]) == (0, len(hub.repositories["acme/base"])), said


def test_a_file_that_is_not_what_the_hub_lists_is_refused_and_removed(hub: Hub, tmp_path: Path) -> None:
    hub.faults.wrong_bytes = True
    code, error, _ = fetch(hub, tmp_path, "acme/base")
    assert (code, error["type"]) == (2, "Malformed")
    assert "SHA-256" in error["message"]
    assert list((tmp_path / "hf").rglob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("ref", "kind", "words"),
    [
        ("acme/nothing", "NotFound", "knows no repository acme/nothing"),
        ("acme/base@v9", "NotFound", "no revision 'v9'"),
        ("acme/gated", "NotAllowed", "accept a licence"),
        ("acme/pickle", "NotAModel", "only pickle"),
        ("acme/projector", "NotAModel", "no config.json"),
        ("not an id", "NotFound", "not a hub id"),
    ],
)
def test_what_cannot_be_fetched_is_said_before_anything_is_written(
    hub: Hub, tmp_path: Path, ref: str, kind: str, words: str
) -> None:
    hub.repositories |= {
        "acme/gated": {},
        "acme/pickle": {"config.json": b"{}", "pytorch_model.bin": b"x"},
        "acme/projector": {"mmproj-F16.gguf": b"x"},
    }
    hub.faults.gated = {"acme/gated"}
    code, error, _ = fetch(hub, tmp_path, ref)
    assert (code, error["type"]) == (2, kind)
    assert words in error["message"]
    assert error["next_step"]
    assert list((tmp_path / "hf").rglob("snapshots")) == []


@pytest.mark.parametrize("name", ["a/../../../../evil.json", "/evil.json", "a\\..\\evil.json", "evil\x1b[2J.json"])
def test_a_listing_whose_names_lead_elsewhere_is_refused_before_anything_is_written(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.repositories["acme/base"][name] = b"{}"
    code, error, said = fetch(hub, tmp_path, "acme/base")
    assert (code, error["type"]) == (2, "Malformed"), said
    assert "which is no plain name" in error["message"]
    assert "\x1b" not in said
    assert not (tmp_path / "hf").exists()


def test_an_adapter_whose_config_is_no_table_is_fetched_with_a_note(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["acme/persona"]["adapter_config.json"] = b"[1, 2"
    code, found, said = fetch(hub, tmp_path, "acme/persona")
    assert code == 0, said
    assert any("adapter_config.json is not JSON" in note for note in found["notes"])


GGUF = ("m-Q4_K_M.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "mmproj-F16.gguf")


@pytest.mark.parametrize(("file", "fetched"), [(None, GGUF[1:3]), ("q4_k_m", GGUF[:1]), (GGUF[2], GGUF[1:3])])
def test_of_several_gguf_models_one_is_fetched(hub: Hub, tmp_path: Path, file: str | None, fetched: tuple[str, ...]) -> None:
    card = b"---\nbase_model: acme/base\n---\n"
    hub.repositories["acme/gguf"] = {name: name.encode() for name in GGUF} | {"README.md": card}
    code, found, said = fetch(hub, tmp_path, "acme/gguf", file=file)
    assert (code, found["kind"]) == (0, "gguf"), said
    folder = Path(found["folder"])
    assert sorted(p.name for p in folder.iterdir()) == sorted([*fetched, "README.md"])
    assert found["left_out"] == sorted(set(GGUF) - set(fetched))
    assert ["config.json" in note or "--file" in note or "acme/base" in note for note in found["notes"]] == [True] * 3


def test_a_gguf_file_that_is_not_there_is_answered_with_those_that_are(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["acme/gguf"] = dict.fromkeys(GGUF, b"x")
    for ref, file, kind, words in (
        ("acme/gguf", "Q5", "NotFound", "m-Q4_K_M.gguf"), ("acme/gguf", "m-", "NotFound", "2 (m-"),
        ("acme/base", "Q8_0", "BadInput", "safetensors"),
    ):  # fmt: skip
        code, error, _ = fetch(hub, tmp_path, ref, file=file)
        assert (code, error["type"]) == (2, kind)
        assert words in error["message"] + error["next_step"]
    assert list((tmp_path / "hf").rglob("*.gguf")) == []


def test_a_token_is_sent_and_never_told(hub: Hub, tmp_path: Path) -> None:
    hub.faults.token = "hf_right_token_of_the_owner"
    code, _, said = fetch(hub, tmp_path, "acme/base", HF_TOKEN="hf_right_token_of_the_owner")
    assert code == 0, said
    code, error, said = fetch(hub, tmp_path, "acme/persona", HF_TOKEN="hf_wrong_token_of_the_owner")
    assert code == 2
    assert "hf_wrong" not in json.dumps(error) + said


def test_a_merge_fetches_its_sources_by_id(hub: Hub, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "MODEL_MERGING_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    recipe = (
        "merge_method: task_arithmetic\ndtype: float32\nbase_model: {base}\nmodels:\n"
        "  - {{model: {base}+{persona}, parameters: {{weight: 1.0}}}}\n"
    )
    ended = []
    for out, folder in (("by_id", "acme"), ("by_path", str(tmp_path))):
        text = recipe.format(base=f"{folder}/base", persona=f"{folder}/persona")
        started = jobs.start_merge(MergeRequest(recipe=text, out=str(tmp_path / out)))
        ended.append(jobs.wait(started.job_id, 120))
    assert [job.state for job in ended] == ["succeeded", "succeeded"], [jobs.logs(job.job_id).text for job in ended]
    assert (tmp_path / "by_id" / "model.safetensors").read_bytes() == (tmp_path / "by_path" / "model.safetensors").read_bytes()
    record = read_provenance(tmp_path / "by_id")
    assert record is not None
    assert {source.revision for source in record.sources} == {COMMIT}


def test_a_disk_without_room_is_refused_before_the_first_byte(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import shutil, sys; from mcp_server.workers import fetch;"
        "usage = shutil.disk_usage('/'); fetch.shutil.disk_usage = lambda _: usage._replace(free=1000);"
        "sys.exit(fetch.run_worker(fetch.main))"
    )
    job = tmp_path / "job"
    job.mkdir()
    (job / "request.json").write_text(json.dumps({"kind": "fetch", "parameters": {"ref": "acme/base"}}), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(job)],
        env=environment | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")},
        check=False,
    )
    error = json.loads((job / "error.json").read_text(encoding="utf-8"))
    assert (ended.returncode, error["type"]) == (4, "DiskFull")
    assert [line for line in hub.requests if "resolve" in line] == []
