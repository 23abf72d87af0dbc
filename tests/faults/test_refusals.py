"""What the operating system can refuse a worker, as the user reads it."""

import errno
import json

import pytest

from mcp_server import jobs
from mcp_server.workers.protocol import run_one


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.EIO, "RunFailed", "the disk reported an input/output error at /models/a"),
        (errno.ENOSPC, "DiskFull", "the disk is full at /models/a"),
        (errno.EDQUOT, "DiskFull", "the disk is full at /models/a"),
        (errno.EROFS, "NotAllowed", "/models/a: Read-only file system"),
        (errno.EACCES, "NotAllowed", "/models/a: Permission denied"),
        (errno.ENOENT, "NotFound", "/models/a is not there (any more)"),
        (errno.EMFILE, "RunFailed", "/models/a: Too many open files"),
    ],
    ids=lambda value: errno.errorcode.get(value) if isinstance(value, int) else None,
)
def test_a_refusal_comes_in_our_words_with_its_path(number, kind, says, job):
    ended = jobs.wait(job({"do": "refuse", "number": number, "path": "/models/a"}).job_id, 30)
    assert (ended.state, ended.error["type"]) == ("failed", kind)
    assert ended.error["message"].startswith(says)
    assert ended.error["next_step"]


def test_memory_that_is_refused_is_out_of_memory(job):
    ended = jobs.wait(job({"do": "exhaust"}).job_id, 30)
    assert (ended.state, ended.error["type"], ended.exit_code) == ("failed", "OutOfMemory", 4)


def test_a_request_that_the_worker_cannot_read_is_said_in_our_words(tmp_path):
    (tmp_path / "request.json").mkdir()
    assert run_one(tmp_path, lambda job: {}) == 2
    said = json.loads((tmp_path / "error.json").read_text(encoding="utf-8"))
    assert said["type"] == "BadInput"
    assert "request.json cannot be used: Is a directory" in said["message"]
