"""Runs beside each other, and the evidence that comes before advice."""

import json
import os
from pathlib import Path

import pytest

from mcp_server.errors import Malformed, NotFound
from mcp_server.formats.content import content_hash
from mcp_server.schemas.evidence import Capability, Check, Evaluation, Verification
from mcp_server.steps.evaluate.causes import base_note, with_causes
from mcp_server.steps.evaluate.history import evaluations, keep
from tests import tiny


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODEL_MERGING_HOME", str(tmp_path / "home"))
    return tiny.write_model(tmp_path / "m")


def run(model: Path, split: str, merged: float) -> Evaluation:
    figures = {"tools": Capability(suite="s", metric="acc", n=8, merged=merged)}
    made = {"capabilities": figures, "verdict": "passed", "split": split, "model": content_hash(model), "created": "2026-01-01"}
    return Evaluation.model_validate(made)


def test_runs_are_kept_side_by_side_and_the_newest_lies_in_its_own_file(model: Path) -> None:
    for split, merged in (("dev", 0.5), ("test", 0.25)):
        newest = keep(model, run(model, split, merged))
    found = evaluations(model).runs
    assert [(r.split, r.suites, r.merged, r.current) for r in found] == [
        ("test", {"s": 8}, {"tools": 0.25}, True),
        ("dev", {"s": 8}, {"tools": 0.5}, True),
    ]
    assert json.loads((model / "evaluation.json").read_text(encoding="utf-8")) == newest.model_dump(mode="json")


def test_a_run_of_weights_that_changed_since_says_so(model: Path) -> None:
    keep(model, run(model, "dev", 0.5))
    file = next(model.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert [r.current for r in evaluations(model).runs] == [False]


def test_a_line_torn_by_a_crash_is_left_out(model: Path) -> None:
    keep(model, run(model, "dev", 0.5))
    with (model / "evaluations.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"capabilities": {"to')
    assert len(evaluations(model).runs) == 1


def test_a_line_that_is_no_evaluation_is_named_whatever_its_bytes(model: Path) -> None:
    found = run(model, "dev", 0.5)
    keep(model, found.model_copy(update={"why": ["ends\u2028here\x85and\x0cthere"]}))
    keep(model, found)
    assert len(evaluations(model).runs) == 2
    file = model / "evaluations.jsonl"
    lines = file.read_bytes()
    for odd in (b"\xff\xfe", b"[]", b"null", b"{}", b"\x00"):
        file.write_bytes(odd + b"\n" + lines)
        with pytest.raises(Malformed, match="line 1"):
            evaluations(model)


@pytest.mark.parametrize("kind", ["link", "dangling", "folder"])
def test_nothing_is_added_to_what_a_link_leads_to(model: Path, tmp_path: Path, kind: str) -> None:
    profile, file = tmp_path / "profile", model / "evaluations.jsonl"
    if kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(profile)
    if kind == "link":
        profile.write_text("my own", encoding="utf-8")
    assert keep(model, run(model, "dev", 0.5)).verdict == "passed"
    assert (profile.read_text(encoding="utf-8") if profile.exists() else None) == ("my own" if kind == "link" else None)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing"):
        evaluations(tmp_path / "nothing")


def test_an_exchange_that_keeps_size_and_time_is_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files are remembered by their change time, which `cp -p` cannot set."""
    monkeypatch.setenv("MODEL_MERGING_HOME", str(tmp_path / "home"))
    folder = tmp_path / "m"
    folder.mkdir()
    file = folder / "model.safetensors"
    seen = []
    for content in (b"a", b"b", b"b"):
        before = file.stat() if file.exists() else None
        with file.open("r+b" if before else "wb") as stream:
            stream.write(content * (5 << 20))
        os.utime(file, ns=(10**18, 10**18))
        seen.append(content_hash(folder))
    assert seen[0] != seen[1] == seen[2]


def test_a_verification_that_failed_comes_before_advice_about_the_recipe(model: Path) -> None:
    wrong = Check(name="loads", passed=False, detail="a shape is odd")
    (model / "verification.json").write_text(Verification(verdict="failed", checks=[wrong]).model_dump_json(), encoding="utf-8")
    found = with_causes(keep(model, run(model, "dev", 1.0)), model)
    assert found.why[0] == "a loader refuses the model (a shape is odd)"
    assert found.next is not None
    assert (found.verdict, found.next["action"], found.next["cause"]) == ("adjust", "repair", "does_not_load")


def test_a_base_far_worse_than_every_source_is_named() -> None:
    def of(base: float) -> Evaluation:
        prose = Capability(suite="p", metric="perplexity", n=8, base=base, sources={"a": 10.0, "b": 12.0})
        return Evaluation(capabilities={"prose": prose}, verdict="inconclusive")

    assert "wrong base" in (base_note(of(500.0), 10.0) or "")
    assert base_note(of(30.0), 10.0) is None
