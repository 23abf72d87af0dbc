"""The tools, grouped by what they touch. Each is an adapter: arguments in, one call below, its result model out."""

from mcp_server.server.checked import CheckedTool
from mcp_server.server.tools import evidence, hub, jobs, knowledge, launch

__all__ = ["all_tools"]


def all_tools() -> list[CheckedTool]:
    """Every tool, in the order of the work."""
    return [*knowledge.tools(), *hub.tools(), *launch.tools(), *jobs.tools(), *evidence.tools()]
