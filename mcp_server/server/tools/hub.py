"""Fetch from a hub, so that ids work where folders do; export to the program that runs a merge."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mcp_server import jobs
from mcp_server.schemas.export import Quant, Target
from mcp_server.schemas.job import ExportRequest, FetchRequest, JobStatus, PublishRequest
from mcp_server.server.access import Access
from mcp_server.server.checked import CheckedTool, checked
from mcp_server.server.consent import PublishConsent, require_publishing
from mcp_server.server.inputs import DOWNLOADS, STARTS, UPLOADS, Out, Ref


def tools() -> list[CheckedTool]:
    return [
        checked(fetch_model, "Fetch a model or adapter from the hub", DOWNLOADS),
        checked(export_merge, "Export a merge", STARTS),
        checked(publish_merge, "Publish a merge on the hub", UPLOADS),
    ]


def fetch_model(
    ref: Annotated[
        str,
        Field(
            min_length=1,
            max_length=300,
            description="owner/name, owner/name@revision, or demo:smollm2-135m-instruct, which is made here.",
        ),
    ],
    with_base: Annotated[bool, Field(description="Also the base that an adapter names.")] = True,
    file: Annotated[str | None, Field(max_length=300, description="Of several GGUF: Q8_0.")] = None,
) -> JobStatus:
    """Start a job that downloads a model or adapter; its id then works in every tool. Only where the
    operator allows the network.
    """
    return jobs.start(FetchRequest(ref=ref, with_base=with_base, file=file), policy=Access.now().policy)


def export_merge(
    out: Out,
    dest: Annotated[str, Field(min_length=1, max_length=4096, description="New folder.")],
    to: Annotated[Target, Field(description="gguf: llama.cpp.")],
    quant: Annotated[Quant | None, Field(description="Default: 16 bits.")] = None,
    base: Annotated[Ref | None, Field(description="Of an adapter.")] = None,
) -> JobStatus:
    """Start a job that writes a merge for llama.cpp, Ollama, vLLM or MLX; a GGUF's replies are compared."""
    access = Access.now()
    request = ExportRequest(
        out=str(access.existing_folder(out)),
        dest=str(access.output(dest)),
        to=to,
        quant=quant,
        base=access.ref(base) if base else None,
    )
    return jobs.start(request, policy=access.policy)


def publish_merge(
    out: Out,
    repo: Annotated[str, Field(min_length=3, max_length=200, description="USER/NAME.")],
    consent: PublishConsent,
    private: Annotated[bool, Field(description="Or public.")] = True,
) -> JobStatus:
    """Start a job that uploads a merge with its card and evidence. The user is asked."""
    access = Access.now()
    folder = access.existing_folder(out)
    require_publishing(consent, out, repo)
    request = PublishRequest(out=str(folder), repo=repo, private=private, yes=True)
    return jobs.start(request, policy=access.policy)
