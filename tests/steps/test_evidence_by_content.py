"""What people rely on speaks of the bytes that lie there: an edit that keeps size and time is another model."""

import os
from pathlib import Path

import pytest

from mcp_server import cli
from mcp_server.errors import NotAllowed
from mcp_server.formats.content import content_hash
from mcp_server.schemas.evidence import Capability, Check, Evaluation, Verification
from mcp_server.schemas.replies import KeptReplies
from mcp_server.steps.evaluate.causes import with_causes
from mcp_server.steps.evaluate.history import of_these_files
from mcp_server.steps.publish import _require_own_evidence
from mcp_server.steps.report import gather, write_report
from mcp_server.workers import verify as verifier
from mcp_server.workers.protocol import Job
from tests import tiny


def edit_unseen(folder: Path) -> None:
    """Change one byte of the weights and put the time back."""
    file = next(folder.glob("*.safetensors"))
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.fixture
def merged(tmp_path: Path, store: Path) -> Path:
    """A folder with evidence about the files in it."""
    out = tiny.write_model(tmp_path / "out")
    model = content_hash(out)
    tools = Capability(suite="s", metric="acc", n=8, merged=0.5)
    checks = [Check(name="readable", passed=True, detail="sound")]
    evaluation = Evaluation(capabilities={"tools": tools}, verdict="passed", model=model)
    verification = Verification(verdict="verified", checks=checks, model=model)
    (out / "evaluation.json").write_text(evaluation.model_dump_json(), encoding="utf-8")
    (out / "verification.json").write_text(verification.model_dump_json(), encoding="utf-8")
    replies = KeptReplies(model=model, created="2026-01-01T00:00:00Z", replies=[])
    (out / "replies.json").write_text(replies.model_dump_json(), encoding="utf-8")
    return out


def test_evidence_of_these_files_is_reported_as_it_is(merged: Path) -> None:
    assert gather(merged).current == {"evaluation": True, "verification": True, "replies": True}
    assert write_report(merged).current == {"evaluation": True, "verification": True, "replies": True}
    page = (merged / "report.html").read_text(encoding="utf-8")
    assert "Verification: verified" in page
    assert "other weights" not in page


def test_a_report_notices_an_edit_that_kept_size_and_time(merged: Path) -> None:
    edit_unseen(merged)
    assert write_report(merged).current == {"evaluation": False, "verification": False, "replies": False}
    page = (merged / "report.html").read_text(encoding="utf-8")
    assert "The merge changed since it was measured" in page
    assert "Evaluation: of other weights" in page
    assert "Verification: of other weights" in page
    assert "Verification: verified" not in page
    assert "**These figures are of other weights" in (merged / "report.md").read_text(encoding="utf-8")


def test_the_command_line_says_what_the_report_shows_of_other_weights(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_unseen(merged)
    (merged / "sweep.json").write_text("[]", encoding="utf-8")
    assert cli.run(["report", str(merged)]) == 0
    said = capsys.readouterr().err
    assert "verification: of other weights than lie there now; run `model-merging verify OUT` again" in said
    assert "evaluation: of other weights than lie there now; run `model-merging evaluate OUT` again" in said
    assert "left out sweep.json" in said


def test_evidence_that_cannot_be_looked_at_is_not_taken_for_none(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (merged / "evaluation.json").unlink()
    (merged / "evaluation.json").symlink_to("evaluation.json")
    assert cli.run(["report", str(merged)]) == 2
    assert "evaluation.json cannot be used" in " ".join(capsys.readouterr().err.split())


def test_evidence_that_does_not_say_of_which_files_is_unknown(merged: Path) -> None:
    old = Verification(verdict="verified", checks=[])
    assert of_these_files(merged, verification=old) == {"verification": None}


def test_the_evaluation_of_edited_weights_is_of_another_model(merged: Path) -> None:
    """What an evaluation is kept and answered under; the file is read whatever was noted of it."""
    before = content_hash(merged)
    edit_unseen(merged)
    assert content_hash(merged) != before


def test_evidence_reads_the_files_even_where_a_note_says_that_nothing_changed(
    merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system whose change time and inode tell nothing."""
    monkeypatch.setattr("mcp_server.system.hashes.stamp", lambda path: [path.stat().st_size])
    content_hash(merged)
    edit_unseen(merged)
    assert gather(merged).current == {"evaluation": False, "verification": False, "replies": False}


def test_evidence_of_other_files_is_not_published(merged: Path) -> None:
    _require_own_evidence(merged)
    edit_unseen(merged)
    with pytest.raises(NotAllowed, match=r"verification\.json is of other files"):
        _require_own_evidence(merged)
    (merged / "verification.json").unlink()
    with pytest.raises(NotAllowed, match=r"evaluation\.json is of other files"):
        _require_own_evidence(merged)


def test_a_verification_notes_the_files_that_it_is_of(merged: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    asked = f'{{"kind": "verify", "parameters": {{"out": "{merged}", "load": false}}}}'
    (folder / "request.json").write_text(asked, encoding="utf-8")
    assert verifier.main(Job(folder)).model == content_hash(merged)


def test_a_verification_of_other_files_explains_nothing_about_these(merged: Path) -> None:
    wrong = Check(name="loads", passed=False, detail="a shape is odd")
    stale = Verification(verdict="failed", checks=[wrong], model="0" * 64)
    (merged / "verification.json").write_text(stale.model_dump_json(), encoding="utf-8")
    found = Evaluation.model_validate_json((merged / "evaluation.json").read_bytes())
    assert with_causes(found, merged).why == []
