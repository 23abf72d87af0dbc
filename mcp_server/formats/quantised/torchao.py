"""torchao's tensors as it flattens them for safetensors: `MODULE._weight_qdata` and its neighbours stand for `MODULE.weight`.

One code a byte, value = (code − zero point) · scale: read as `scaled` is. Which kind of tensor it was says the file's metadata;
kinds whose bytes lie in a GPU's order, or whose formula is another, are refused by name.

Source: torchao.prototype.safetensors (flatten_tensor_state_dict), torchao.quantization (Int8Tensor, IntxUnpackedToInt8Tensor,
Float8Tensor), version 0.18.
"""

from __future__ import annotations

import json
import re
from typing import Final

from mcp_server.errors import Malformed, Unsupported
from mcp_server.formats.quantised.part import AGAIN, Found, Stored
from mcp_server.formats.quantised.scaled import FLOAT8, scaled

_CODES: Final = re.compile(r"(?P<module>(?:.+\.)?)_(?P<name>[^.]+)_qdata$")
_READ: Final = {"Int8Tensor": ("I8",), "IntxUnpackedToInt8Tensor": ("I8",), "Float8Tensor": FLOAT8}
_DEQUANTISE: Final = "load it with transformers and torchao, dequantize() each weight and save it, or merge the unquantised model"


def find(stored: Stored) -> Found:
    found: Found = {}
    for codes in stored.parts.values():
        if not (match := _CODES.match(codes.name)):
            continue
        name, stem = match["module"] + match["name"], codes.name.removesuffix("qdata")
        kind = _kind(stored, name)
        if kind not in _READ:
            raise Unsupported(
                f"{stored.where} is quantised by torchao: {name} is its {kind}, which is not read here", _DEQUANTISE
            )
        if codes.dtype not in _READ[kind]:
            raise stored.wrong(codes, f"{' or '.join(_READ[kind])}, as torchao's {kind} is")
        if f"{stem}act_pre_scale" in stored.parts:
            raise Unsupported(f"{stored.where}: {stem}act_pre_scale changes what {name} is multiplied with", _DEQUANTISE)
        scale = stored.need(f"{stem}scale", f"{codes.name} holds codes")
        packing = scaled(stored, codes, scale, stored.parts.get(f"{stem}zero_point"))
        found[name] = (packing, tuple(part.name for part in packing.parts))
    return found


def _kind(stored: Stored, name: str) -> str:
    try:
        said = json.loads(stored.metadata[name])["_type"]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise Malformed(
            f"{stored.where}: {name} is packed by torchao, but its file's metadata does not say as which kind of tensor", AGAIN
        ) from error
    return str(said)[:80]
