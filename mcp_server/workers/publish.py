"""Uploads a merge to a hub: texts rewritten for the public, weights as they are, one commit.

Worker inputs   request.json parameters: `PublishRequest`
Worker outputs  result.json: `Published`
Large files are sent one by one before the commit, and the hub knows each by its content: a job that is resumed sends only what is
missing. Nothing of the repository is changed until the commit at the end; then what the hub lists is held against what was sent.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoSibling

from mcp_server.errors import NotAllowed, RunFailed
from mcp_server.formats.companions import CARD_FILE, PROVENANCE_FILE
from mcp_server.formats.hub.refusals import explained
from mcp_server.schemas.hub import Published
from mcp_server.schemas.job import PublishRequest
from mcp_server.steps.publish import publication, superseded
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
        there = api.model_info(request.repo)
        earlier = {one.rfilename for one in there.siblings or []}
        require_ours(request.repo, earlier, private=bool(there.private) if request.private else None)
        files = [CommitOperationAdd(name, path) for name, path in sorted(made.files.items(), key=lambda f: f[1].stat().st_size)]
        for operation in files:
            api.preupload_lfs_files(request.repo, [operation], free_memory=False)
            sent += operation.upload_info.size
            job.progress("upload", sent, total, unit="bytes")
        texts = [CommitOperationAdd(name, text.encode()) for name, text in made.texts.items()]
        gone = superseded(earlier, {*made.files, *made.texts})
        changes: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete]
        changes = [*files, *texts, *(CommitOperationDelete(name) for name in gone)]
        commit = api.create_commit(request.repo, changes, commit_message="Publish a merge with its record")
        job.progress("check", total, total, unit="bytes")
        held = api.model_info(request.repo, revision=str(commit.oid), files_metadata=True).siblings or []
    _require_whole(request.repo, files, {one.rfilename: one for one in held})
    job.progress("check", total, total, unit="bytes")
    return Published(
        repo=request.repo,
        url=str(created),
        commit=str(commit.oid),
        private=bool(there.private),
        files=sorted([*made.files, *made.texts]),
        bytes=total,
        licence=made.licence,
        base_models=made.base_models,
        notes=[*made.notes, *([f"removed from the earlier merge there: {', '.join(gone)}"] if gone else [])],
    )


def require_ours(repo: str, names: set[str], *, private: bool | None) -> None:
    """Raise `NotAllowed` for a repository that holds something else than a merge of ours, or is not `private` as was asked.

    `private` is what the hub says, null where nothing was asked; a repository that exists keeps its visibility.
    """
    others = sorted(names - {".gitattributes", CARD_FILE})
    if others and PROVENANCE_FILE not in names:
        raise NotAllowed(
            f"{repo} exists and holds other files than a merge of this tool: {', '.join(others[:4])}",
            "choose another name, or empty the repository first",
        )
    if private is False:
        raise NotAllowed(
            f"{repo} exists and is public, and you asked for a private one; nothing was sent",
            "make it private on the hub's page of its settings, or choose another name",
        )


def _require_whole(repo: str, sent: list[CommitOperationAdd], held: dict[str, RepoSibling]) -> None:
    """Raise `RunFailed` where the hub lists other bytes than were sent, or none: by size, and by SHA-256 where it keeps that."""
    for operation in sent:
        name, mine, theirs = operation.path_in_repo, operation.upload_info, held.get(operation.path_in_repo)
        if theirs is None:
            found = "no such file"
        elif theirs.lfs is not None and theirs.lfs.sha256 != mine.sha256.hex():
            found = f"the SHA-256 {theirs.lfs.sha256[:16]}…, and {mine.sha256.hex()[:16]}… was sent"
        elif theirs.size not in (None, mine.size):
            found = f"{theirs.size} bytes, and {mine.size} were sent"
        else:
            continue
        raise RunFailed(f"after the upload {repo} has {found} as {name}", "publish it again: what is whole is not sent twice")


if __name__ == "__main__":
    sys.exit(run_worker(main))
