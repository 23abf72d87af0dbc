"""Suggestions while somebody fills in an address or a prompt: strategy ids, template ids, job ids."""

from __future__ import annotations

from mcp.server import MCPServer
from mcp.types import Completion, CompletionArgument, CompletionContext, PromptReference, ResourceTemplateReference

from mcp_server import jobs
from mcp_server.server.resources import strategy_ids

MOST = 100
"""The protocol's limit for one answer."""


def register(server: MCPServer) -> None:
    async def complete(
        ref: PromptReference | ResourceTemplateReference, argument: CompletionArgument, _context: CompletionContext | None
    ) -> Completion | None:
        names = candidates(ref, argument.name)
        if names is None:
            return None
        fitting = [name for name in names if name.startswith(argument.value)]
        return Completion(values=fitting[:MOST], total=len(fitting), has_more=len(fitting) > MOST)

    server.completion()(complete)  # type: ignore[no-untyped-call]


def candidates(ref: PromptReference | ResourceTemplateReference, argument: str) -> list[str] | None:
    """Everything that fits the place, newest jobs first; None where nothing is known."""
    if isinstance(ref, PromptReference):
        return job_ids() if argument == "job_id" else None
    if argument != "id":
        return None
    if ref.uri.startswith("merge://jobs/"):
        return job_ids()
    return strategy_ids() if ref.uri.startswith(("merge://strategies/", "merge://templates/")) else None


def job_ids() -> list[str]:
    return [job.job_id for job in jobs.list_jobs(offset=0, limit=MOST).jobs]
