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
    ref: Annotated[str, Field(min_length=1, max_length=300, description="Hub id: owner/name, or owner/name@revision.")],
    with_base: Annotated[bool, Field(description="For an adapter, also fetch the base that its config names.")] = True,
) -> JobStatus:
    """Start a job that downloads a model or adapter into the local cache, where every tool then finds it by its id. It resumes
    where it stopped, checks the disk first and hashes what it wrote. Only where the operator allows the network. Follow it with
    merge_status.
    """
    return jobs.start(FetchRequest(ref=ref, with_base=with_base), policy=Access.now().policy)
