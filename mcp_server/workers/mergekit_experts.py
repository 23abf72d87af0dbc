"""Experts that mergekit wrote as transformers' stacks in memory, stored one by one, as such models are published.

`experts.gate_up_proj` (experts, 2·inner, hidden) holds of each expert the rows of its gate, then those of its up projection;
`experts.down_proj` (experts, hidden, inner) its down projection. One by one these are the same bytes in the same order, so a file
gets another header and keeps its data. vLLM and llama.cpp read that form alone; transformers reads both.

Source: transformers.conversion_mapping, mixtral and qwen3_moe.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mcp_server.formats.safetensors import TensorInfo, read_header
from mcp_server.formats.tensors import read_json
from mcp_server.system.files import write_text

_STORED: Final = {
    "mixtral": ("block_sparse_moe", {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}),
    "qwen3_moe": ("mlp", {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}),
}
"""model_type → the block's stored name, and the matrices of one expert that each stack holds."""
_STACK: Final = re.compile(r"(?P<layer>.+)\.mlp\.experts\.(?P<stack>gate_up_proj|down_proj)$")
_ROUTER: Final = re.compile(r"(?P<layer>.+)\.mlp\.gate\.weight$")
_COPIED: Final = 1 << 22


def store_one_by_one(folder: Path) -> None:
    """Rewrite the weight files of a mixture in place, and their index. Models of other types stay as they are."""
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in _STORED:
        return
    homes: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        header = read_header(file)
        entries = dict(_apart(header.tensors, *_STORED[str(kind)]))
        homes |= dict.fromkeys(entries, file.name)
        if entries.keys() != header.tensors.keys():
            _rewrite(file, header.data_start, entries, header.metadata)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        table = read_json(index) | {"weight_map": dict(sorted(homes.items()))}
        write_text(index, json.dumps(table, indent=2) + "\n")


def _apart(tensors: dict[str, TensorInfo], block: str, parts: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, TensorInfo]]:
    for name, info in tensors.items():
        if (found := _STACK.match(name)) and len(info.shape) == 3:
            own = parts[found["stack"]]
            experts, rows, columns = info.shape
            size = info.nbytes // (experts * len(own))
            for number in range(experts * len(own)):
                expert, part = divmod(number, len(own))
                begin = info.begin + number * size
                stored = f"{found['layer']}.{block}.experts.{expert}.{own[part]}.weight"
                yield stored, TensorInfo(info.dtype, (rows // len(own), columns), begin, begin + size)
        elif found := _ROUTER.match(name):
            yield f"{found['layer']}.{block}.gate.weight", info
        else:
            yield name, info


def _rewrite(file: Path, data_start: int, entries: dict[str, TensorInfo], metadata: dict[str, str]) -> None:
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    table |= {n: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [t.begin, t.end]} for n, t in entries.items()}
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    part = file.with_name(f".{file.name}.part")
    with file.open("rb") as source, part.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        source.seek(data_start)
        shutil.copyfileobj(source, out, _COPIED)
    part.replace(file)
