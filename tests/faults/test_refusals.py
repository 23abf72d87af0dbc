"""What the operating system can refuse a worker, as the user reads it."""

import errno

import pytest

from mcp_server import jobs


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
