"""A log is bounded, keeps its offsets, and tells no secrets."""

import pytest

from mcp_server import jobs
from mcp_server.jobs.log_file import LogWriter, last_progress, read_page
from mcp_server.system.redaction import redact, secrets_of
from mcp_server.workers import protocol


def pages(folder, size):
    text, offset = "", 0
    while offset is not None:
        page = read_page(folder, offset, size)
        text, offset = text + page.text, page.next_offset
    return text


def write(folder, *lines, limit=1000, environment=None):
    folder.mkdir(exist_ok=True)
    (folder / "log.txt").touch()
    log = LogWriter(folder, limit, environment or {})
    for line in lines:
        log.feed(line.encode() + b"\n")
    log.close()
    return log


def test_pages_put_together_are_the_log(tmp_path):
    lines = [f"line {n}" for n in range(50)]
    write(tmp_path / "merge-x", *lines)
    assert pages(tmp_path / "merge-x", 64).splitlines() == lines


def test_a_page_ends_at_the_end_of_a_line(tmp_path):
    write(tmp_path / "merge-x", "abc", "defgh")
    page = read_page(tmp_path / "merge-x", 0, 6)
    assert (page.text, page.next_offset) == ("abc\n", 4)


def test_the_log_is_bounded_and_offsets_stay_valid_across_rotation(tmp_path):
    folder = tmp_path / "merge-x"
    lines = [f"line {n:05d}" for n in range(1000)]
    write(folder, *lines)
    total = sum(len(line) + 1 for line in lines)
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 2 * 1000 + len(lines[0]) + 1
    assert read_page(folder, total - 11, 100).text == "line 00999\n"
    first = read_page(folder, 0, 200)
    assert first.text.startswith("[") and "bytes of older log were dropped" in first.text
    kept = pages(folder, 200).splitlines()[1:]
    assert kept == lines[-len(kept) :]


def test_a_progress_bars_carriage_returns_become_lines(tmp_path):
    folder = tmp_path / "merge-x"
    write(folder, "10%\r50%\r100%")
    assert read_page(folder, 0, 100).text == "10%\n50%\n100%\n"


def test_a_line_without_end_is_written_before_it_fills_the_memory(tmp_path):
    folder = tmp_path / "merge-x"
    folder.mkdir()
    log = LogWriter(folder, 10_000_000, {})
    log.feed(b"x" * 70_000)
    assert (folder / "log.txt").stat().st_size == 70_001


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("token hf_abcdefghijklmnopqrstuv used", "token [secret] used"),
        ("Authorization: Bearer abcdef0123456789abcdef", "Authorization: Bearer [secret]"),
        ("key=swordfish-9", "key=[secret]"),
        ("half hf_abc is no token", "half hf_abc is no token"),
    ],
)
def test_secrets_do_not_reach_the_log(line, shown):
    assert redact(line, secrets_of({"MY_API_KEY": "swordfish-9", "PATH": "/bin", "SHORT_TOKEN": "abc"})) == shown


def test_a_workers_environment_holds_no_secret_of_the_caller(job, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-workers")
    monkeypatch.setenv("HF_TOKEN", "hf_notforofflineworkers")
    names = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "HF_HUB_OFFLINE")
    ended = jobs.wait(job(*({"do": "environment", "name": name} for name in names)).job_id, 30)
    assert jobs.logs(ended.job_id).text.splitlines()[:3] == ["AWS_SECRET_ACCESS_KEY=None", "HF_TOKEN=None", "HF_HUB_OFFLINE=1"]


def test_the_file_of_events_is_bounded_and_the_last_progress_outlives_its_rotation(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "_EVENTS_BYTES", 1_000)
    (tmp_path / "request.json").write_text('{"kind": "verify", "parameters": {}}', encoding="utf-8")
    worker = protocol.Job(tmp_path)
    for n in range(200):
        worker.progress("work", n, 1_000, every_seconds=0)
        assert last_progress(tmp_path).done == n
    assert sorted(p.name for p in tmp_path.glob("events*")) == ["events.1.jsonl", "events.jsonl"]
    assert sum(p.stat().st_size for p in tmp_path.glob("events*")) < 2 * 1_000 + 200


def test_a_noisy_worker_keeps_a_bounded_log(job, monkeypatch):
    monkeypatch.setenv("MODEL_MERGING_LOG_BYTES", "10000")
    ended = jobs.wait(job({"do": "say", "text": "x" * 99, "times": 2000}, {"do": "say", "text": "the end"}).job_id, 30)
    folder = jobs.control.store.find(ended.job_id)
    assert sum(p.stat().st_size for p in folder.glob("log*")) < 2 * 10_000 + 65_536
    assert "the end\n" in "".join(p.read_text(encoding="utf-8") for p in folder.glob("log*"))
