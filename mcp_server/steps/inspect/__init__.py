"""Reading checkpoints from headers and JSON alone: what a source is, and whether sources fit each other."""

from mcp_server.formats.source import inspect_source
from mcp_server.steps.inspect.differences import inspect_models

__all__ = [
    "inspect_models",
    "inspect_source",
]
