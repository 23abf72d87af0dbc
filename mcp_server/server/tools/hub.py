"""Fetch from a hub, so that ids work where folders do."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mcp_server import jobs
from mcp_server.schemas.job import FetchRequest, JobStatus
from mcp_server.server.access import Access
from mcp_server.server.checked import CheckedTool, checked
from mcp_server.server.inputs import DOWNLOADS


def tools() -> list[CheckedTool]:
    return [checked(fetch_model, "Fetch a model or adapter from the hub", DOWNLOADS)]


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
) -> JobStatus:
    """Start a job that downloads a model or adapter into the local cache; its id then works in every tool. Only where the
    operator allows the network.
    """
    return jobs.start(FetchRequest(ref=ref, with_base=with_base), policy=Access.now().policy)
