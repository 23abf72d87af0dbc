"""A base that is not here, as far as its adapters tell it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mcp_server.errors import Incompatible
from mcp_server.formats.adapter_file import KEY, bare, saved_name
from mcp_server.formats.checkpoint import locate
from mcp_server.formats.safetensors import read_header
from mcp_server.formats.tensors import StoredTensor


def base_of_adapters(refs: Iterable[str]) -> dict[str, StoredTensor]:
    """The tensors that adapters change, with the base's names and shapes as far as the adapters tell them; no bytes behind them.

    It stands for a base that is not here. Raises `Incompatible` when two adapters need different shapes of one tensor.
    """
    found: dict[str, StoredTensor] = {}
    for ref in refs:
        file = locate(ref) / "adapter_model.safetensors"
        shapes: dict[str, tuple[int, ...]] = {}
        factors: dict[str, dict[str, tuple[int, ...]]] = {}
        for key, info in read_header(file).tensors.items():
            if match := KEY.match(bare(key)):
                factors.setdefault(match["module"].replace(".base_layer", ""), {})[match["part"]] = info.shape
            else:
                shapes[saved_name(bare(key))] = info.shape
        for module, parts in factors.items():
            out, into = ("lora_embedding_A", "lora_embedding_B") if "lora_embedding_A" in parts else ("lora_B", "lora_A")
            if out in parts and into in parts and len(parts[out]) == len(parts[into]) == 2:
                rows, columns = (parts[out][0], parts[into][1]) if out == "lora_B" else (parts[out][1], parts[into][0])
                shapes[f"{module}.weight"] = (rows, columns)
        for name, shape in shapes.items():
            if name in found and found[name].shape != shape:
                raise Incompatible(
                    f"{name} is {list(found[name].shape)} for one adapter and {list(shape)} for {ref}",
                    "merge adapters of one base",
                )
            found[name] = StoredTensor(file, 0, "BF16", shape, math.prod(shape))
    return found
