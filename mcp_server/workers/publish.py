"""Uploads a merge to a hub: texts rewritten for the public, weights as they are, one commit.

Worker inputs   request.json parameters: `PublishRequest`
Worker outputs  result.json: `Published`
Large files are sent one by one before the commit, and the hub knows each by its content: a job that is resumed sends only what is
missing. Nothing of the repository is changed until the commit at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
from huggingface_hub import CommitOperationAdd, HfApi

from mcp_server.errors import NotAllowed
from mcp_server.formats.hub.refusals import explained
from mcp_server.schemas.hub import Published
from mcp_server.schemas.job import PublishRequest
from mcp_server.steps.publish import publication
from mcp_server.workers.protocol import Job, run_worker


@contextmanager
def as_it_was_raised() -> Iterator[None]:
    """huggingface_hub hides what stopped the upload of a large file (a disk, a connection) behind an error without a class."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, OSError | httpx.TransportError):
            raise error.__cause__ from error
        raise


def main(job: Job) -> Published:
    request = job.request(PublishRequest)
    if not request.yes:
        raise NotAllowed(f"nobody said yes to publishing {request.repo}", "publish it with --yes")
    made = publication(Path(request.out), request.repo, private=request.private, licence=request.licence)
    api = HfApi()
    total, sent = made.bytes, 0
    job.progress("upload", 0, total, unit="bytes")
    with explained(request.repo, "main"), as_it_was_raised():
        created = api.create_repo(request.repo, private=request.private, exist_ok=True)
        files = [CommitOperationAdd(name, path) for name, path in sorted(made.files.items(), key=lambda f: f[1].stat().st_size)]
        for operation in files:
            api.preupload_lfs_files(request.repo, [operation], free_memory=False)
            sent += operation.upload_info.size
            job.progress("upload", sent, total, unit="bytes")
        texts = [CommitOperationAdd(name, text.encode()) for name, text in made.texts.items()]
        commit = api.create_commit(request.repo, [*files, *texts], commit_message="Publish a merge with its record")
    job.progress("upload", total, total, unit="bytes")
    return Published(
        repo=request.repo,
        url=str(created),
        commit=str(commit.oid),
        private=request.private,
        files=sorted([*made.files, *made.texts]),
        bytes=total,
        licence=made.licence,
        base_models=made.base_models,
        notes=made.notes,
    )


if __name__ == "__main__":
    sys.exit(run_worker(main))
