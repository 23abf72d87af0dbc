"""What a merge costs before it is run: memory, disk and time, for each engine and for the evidence afterwards."""

from mcp_server.steps.estimate.plan import estimate_plan
from mcp_server.steps.estimate.run import estimate

__all__ = ["estimate", "estimate_plan"]
