"""Reading checkpoints from headers and JSON alone: what a source is, and whether sources fit each other."""

from mcp_server.formats.adapter_info import describe_adapter, factors, module_rank
from mcp_server.formats.source import Adapter, Checkpoint, inspect_source, locate, open_adapter, open_checkpoint
from mcp_server.formats.tensors import StoredTensor, StoredTensors, read_tensors
from mcp_server.steps.inspect.differences import inspect_models

__all__ = [
    "Adapter",
    "Checkpoint",
    "StoredTensor",
    "StoredTensors",
    "describe_adapter",
    "factors",
    "inspect_models",
    "inspect_source",
    "locate",
    "module_rank",
    "open_adapter",
    "open_checkpoint",
    "read_tensors",
]
