"""What a merge costs before it is run: memory, disk and time, for each engine and for the evidence afterwards."""

from mcp_server.core.estimate.plan import estimate_plan
from mcp_server.core.estimate.run import estimate

__all__ = ["estimate", "estimate_plan"]
