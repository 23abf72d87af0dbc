"""What the stream engine holds: the process, its block buffers, and the adapters' factors. Nothing grows with the model.

The bound itself belongs to the engine (`engine.memory`); here it is only asked for, and turned into figures for people.
"""

from __future__ import annotations

from mcp_server.core.estimate.costs import costs
from mcp_server.core.estimate.work import Work


def breakdown(work: Work, threads: int | None) -> dict[str, int]:
    """Part → bytes; the sum is the upper bound of the engine's anonymous memory."""
    constants = costs().stream
    return {
        "process": constants.process_bytes,
        "block_buffers": (threads or 2) * (work.inputs + 2) * 4 * 2**20,
        "adapters": 2 * work.adapter_bytes,
    }
