"""Files in the store, damaged in any way: every reader answers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import MergingError, from_dict
from mcp_server.jobs import locks, store
from mcp_server.jobs.log_file import LogWriter, last_progress, read_page
from mcp_server.schemas.job import Progress

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["event", "stage", "done", "store", "job_id", "x"]), inner)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("jobs") / "merge-20260101-000000-aaaa"
    found.mkdir()
    return found


@given(st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_status(folder, data):
    (folder / "status.json").write_bytes(data)
    assert store.read(folder).job_id


def test_nesting_without_end_is_passed_over(folder):
    for name in ("events.jsonl", "lock"):
        (folder / name).write_bytes(b"[" * 15_000)
    assert (last_progress(folder), locks.read_claim(folder / "lock")) == (None, None)


@given(st.lists(st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode())), max_size=5))
def test_any_events(folder, lines):
    (folder / "events.jsonl").write_bytes(b"\n".join(lines))
    assert isinstance(last_progress(folder), Progress | None)


@given(st.binary(max_size=100))
def test_any_claim(folder, data):
    (folder / "lock").write_bytes(data)
    assert locks.read_claim(folder / "lock") is None or data


@given(st.lists(st.binary(max_size=80), max_size=10), st.integers(1, 50))
def test_pages_of_any_log_put_together_are_the_whole_log(folder, parts, size):
    for old in folder.glob("log*"):
        old.unlink()
    log = LogWriter(folder, 10_000_000, {})
    for part in parts:
        log.feed(part)
    log.close()
    text, offset = "", 0
    while offset is not None:
        page = read_page(folder, offset, size)
        assert page.next_offset is None or page.next_offset > offset
        text, offset = text + page.text, page.next_offset
    written = (folder / "log.txt").read_bytes() if (folder / "log.txt").exists() else b""
    assert text == written.decode("utf-8")


@given(st.dictionaries(st.sampled_from(["type", "message", "next_step", "details", "x"]), JSON))
def test_any_error_file_becomes_an_error(data):
    assert isinstance(from_dict(data), MergingError)
